"""Autoencoders of diffusers behind the tokenizer's contract, from Python and from the commands."""

import json
import sys

import numpy as np
import pytest
import torch
from contract import GridContract, photos
from safetensors.torch import load_file, save_file

from softvq import cli, images
from softvq.errors import UserError
from softvq.evaluate.cost import tokenizer_cost
from softvq.evaluate.systems import open_system
from softvq.generator.config import SiTConfig
from softvq.generator.transformer import SiT
from softvq.interop.diffusers import DiffusersConfig, DiffusersTokenizer
from softvq.models import open_tokenizer
from softvq.pipeline import Pipeline
from softvq.tokenizer import TokenizerConfig

diffusers = pytest.importorskip("diffusers")


def autoencoder_kl(**changes):
    """A random AutoencoderKL that reduces images by 8, to 4 channels."""
    torch.manual_seed(0)
    shape = {
        "down_block_types": ("DownEncoderBlock2D",) * 4,
        "up_block_types": ("UpDecoderBlock2D",) * 4,
        "block_out_channels": (8, 8, 16, 16), "norm_num_groups": 4, "latent_channels": 4,
        "sample_size": 32, "scaling_factor": 0.18215,
    }  # fmt: skip
    return diffusers.AutoencoderKL(**(shape | changes)).eval()


def autoencoder_dc():
    """A random AutoencoderDC that reduces images by 8, to 8 channels."""
    torch.manual_seed(0)
    kinds = ("ResBlock", "ResBlock", "ResBlock", "EfficientViTBlock")
    parts = {
        f"{part}_{key}": value
        for part in ("encoder", "decoder")
        for key, value in (
            ("block_types", kinds),
            ("block_out_channels", (8, 8, 16, 16)),
            ("layers_per_block", (1, 1, 1, 1)),
            ("qkv_multiscales", ((), (), (), (5,))),
        )
    }
    return diffusers.AutoencoderDC(
        latent_channels=8, attention_head_dim=8, scaling_factor=0.41407, **parts
    ).eval()


class Contract(GridContract):
    def test_loading_is_strict(self, tokenizer, tmp_path, caplog):
        tokenizer.save_pretrained(tmp_path)
        weights = tmp_path / "diffusion_pytorch_model.safetensors"
        state = load_file(weights)
        name = "encoder.conv_in.bias"
        for changed, message in (
            ({k: v for k, v in state.items() if k != name}, f"missing {name}"),
            (state | {"more": torch.ones(1)}, "extra more"),
            (state | {name: torch.ones(5)}, f"{name} expected shape"),
        ):
            save_file(changed, weights)
            with pytest.raises(UserError, match=message):
                open_tokenizer(tmp_path)
        weights.write_bytes(weights.read_bytes()[:-100])
        with pytest.raises(UserError, match="Unable to load weights"):
            open_tokenizer(tmp_path)
        weights.unlink()
        with pytest.raises(UserError, match="no file named diffusion_pytorch_model.safetensors"):
            open_tokenizer(tmp_path)
        assert not caplog.records


class TestAutoencoderKL(Contract):
    config = DiffusersConfig("AutoencoderKL", 32, 32, patch=8, tokens=16, channels=4)

    @pytest.fixture
    def tokenizer(self):
        return DiffusersTokenizer(autoencoder_kl())


class TestAutoencoderDC(Contract):
    config = DiffusersConfig("AutoencoderDC", 32, 32, patch=8, tokens=16, channels=8)

    @pytest.fixture
    def tokenizer(self):
        return DiffusersTokenizer(autoencoder_dc(), (32, 32))


def cells(grid: torch.Tensor) -> torch.Tensor:
    return torch.stack([grid[:, :, r, c] for r in range(4) for c in range(6)], dim=1)


def test_kl_is_what_diffusers_computes():
    vae = autoencoder_kl(shift_factor=0.1159)
    tokenizer = DiffusersTokenizer(vae, (32, 48)).eval()
    pixels = photos(2, 32, 48)
    with torch.no_grad():
        posterior = vae.encode(pixels).latent_dist
        tokens = tokenizer.encode(pixels)
        assert torch.equal(tokens.latents, cells(posterior.mode()))
        for ours, theirs in zip(tokens.posterior, (posterior.mean, posterior.logvar), strict=True):
            assert torch.equal(ours, cells(theirs))
        assert torch.equal(tokenizer.decode(tokens.latents), vae(pixels).sample)
    unit = tokenizer.normalize(tokens.latents)
    torch.testing.assert_close(unit, (tokens.latents - 0.1159) * 0.18215)


def test_dc_is_what_diffusers_computes():
    vae = autoencoder_dc()
    tokenizer = DiffusersTokenizer(vae, (32, 48)).eval()
    pixels = photos(2, 32, 48)
    with torch.no_grad():
        latents = tokenizer.encode(pixels).latents
        assert torch.equal(latents, cells(vae.encode(pixels).latent))
        assert torch.equal(tokenizer.decode(latents), vae(pixels).sample)
    torch.testing.assert_close(tokenizer.normalize(latents), latents * 0.41407)


def test_mean_and_std_per_channel():
    mean, std = [1.0, 2.0, 3.0, 4.0], [0.5, 0.6, 0.7, 0.8]
    vae = autoencoder_kl(latents_mean=mean, latents_std=std, scaling_factor=0.5)
    tokenizer = DiffusersTokenizer(vae)
    latents = torch.randn(2, 16, 4)
    expected = (latents - torch.tensor(mean)) * 0.5 / torch.tensor(std)  # as diffusers' pipelines
    torch.testing.assert_close(tokenizer.normalize(latents), expected)


def test_without_the_optional_convolutions():
    vae = autoencoder_kl(use_quant_conv=False, use_post_quant_conv=False)
    with torch.no_grad():
        assert torch.equal(DiffusersTokenizer(vae).eval()(photos())[0], vae(photos()).sample)


# ---- directories ----


@pytest.fixture(scope="module")
def kl(tmp_path_factory):
    folder = tmp_path_factory.mktemp("kl")
    autoencoder_kl().save_pretrained(folder)
    return folder


@pytest.fixture(scope="module")
def dc(tmp_path_factory):
    folder = tmp_path_factory.mktemp("dc")
    autoencoder_dc().save_pretrained(folder)
    return folder


def test_a_pipeline_of_diffusers_serves(tmp_path):
    autoencoder_kl().save_pretrained(tmp_path / "vae")
    (tmp_path / "tokenizer").mkdir()  # of its text
    tokenizer = open_tokenizer(tmp_path)
    assert (tokenizer.config.height, tokenizer.config.width) == (32, 32)
    assert open_tokenizer(tmp_path, (16, 24)).config.tokens == 6


def test_a_generator_on_its_tokens(kl, tmp_path):
    shape = SiTConfig(tokens=16, channels=4, num_classes=2, width=32, depth=1, heads=2)
    pipeline = Pipeline(open_tokenizer(kl), SiT(shape).eval(), ["first", "second"])
    pipeline.save_pretrained(tmp_path)
    again = Pipeline.from_pretrained(tmp_path)
    drawn = [np.asarray(p(["second"], steps=2)[0]) for p in (pipeline, again)]
    assert drawn[0].shape == (32, 32, 3)
    assert np.array_equal(*drawn)


@pytest.fixture
def folder(tmp_path):
    """Three photos."""
    for i, picture in enumerate(images.to_pil(photos(3))):
        images.save_png(picture, tmp_path / "photos" / f"{i}.png")
    return tmp_path / "photos"


def run(*arguments) -> int:
    return cli.main([str(argument) for argument in arguments])


def test_commands(kl, dc, folder, tmp_path, capsys):
    out = tmp_path / "pairs"
    assert run("reconstruct", "--tokenizer", kl, "--data", folder, "--out", out) == 0
    assert len(list(out.glob("*.png"))) == 3
    capsys.readouterr()
    evaluate = ["evaluate", "reconstruction", "--data", folder, "--split", "all", "--json"]
    assert run(*evaluate, "--tokenizer", kl) == 0
    figures = json.loads(capsys.readouterr().out)
    assert (figures["images"], figures["height"], figures["floats_per_image"]) == (3, 32, 64)
    assert run(*evaluate, "--tokenizer", dc, "--size", "32x48") == 0
    figures = json.loads(capsys.readouterr().out)
    assert (figures["height"], figures["width"]) == (32, 48)
    assert figures["floats_per_image"] == 4 * 6 * 8


def test_encode_and_decode(dc, folder, tmp_path):
    size = ["--tokenizer", dc, "--size", 32, "--precision", "fp32"]
    assert run("encode", *size, "--data", folder, "--out", tmp_path / "tokens") == 0
    assert run("decode", *size, tmp_path / "tokens", "--out", tmp_path / "pictures") == 0
    tokenizer = open_tokenizer(dc, (32, 32))
    original = images.to_tensor(np.asarray(images.load(folder / "1.png")))[None]
    expected = images.to_uint8(tokenizer.reconstruct(original))[0]
    shown = np.asarray(images.load(tmp_path / "pictures" / "1.png"))
    assert np.abs(shown.astype(int) - expected).max() <= 1


def test_cost_is_that_of_our_own_autoencoder(tmp_path):
    """Layer by layer the cnn is an AutoencoderKL, but for attention's one projection of q, k, v."""
    autoencoder_kl(
        block_out_channels=(16, 32, 64, 64), layers_per_block=2, norm_num_groups=4
    ).save_pretrained(tmp_path / "vae")
    shape = {"height": 32, "width": 48, "patch": 8, "tokens": 24, "channels": 4}
    depths = {"encoder_depth": 2, "decoder_depth": 3, "encoder_width": 16, "decoder_width": 16}
    ours = tokenizer_cost(TokenizerConfig(network="cnn", bottleneck="kl", **shape, **depths))
    for folder in (tmp_path, tmp_path / "vae"):  # a pipeline of diffusers, and its autoencoder
        system = open_system(str(folder), size=(32, 48))
        assert {name: getattr(system.shape, name) for name in shape} == shape
        theirs = tokenizer_cost(system.tokenizer)
        for name in ("encoder", "decoder"):
            assert theirs[name].parameters == ours[name].parameters
            assert theirs[name].flops == ours[name].flops


def test_cost_with_a_generator(dc, tmp_path, capsys):
    SiT(SiTConfig(16, 8, num_classes=2, width=32, depth=1, heads=2)).save_pretrained(tmp_path)
    command = ["cost", dc, "--generator", tmp_path, "--steps", 2, "--batch", 1]
    assert run(*command, "--size", 32, "--measure", "--json") == 0
    column = json.loads(capsys.readouterr().out)["systems"][0]
    assert column["parts"]["decoder"]["flops"] > 0 and column["measured"]["generate"]["median"] > 0
    for arguments, message in (
        ((*command, "--size", 64), "draws 16 x 8 tokens"),
        (command, "does not say for what image size it was made; give a size"),
        (("cost", tmp_path, "--generator", dc, "--size", 32), "a generator; give its tokenizer"),
    ):
        assert run(*arguments) == 2
        text = capsys.readouterr().err
        assert message in text and text.count("\n") == 1


def test_errors_are_one_line(kl, dc, folder, tmp_path, capsys, monkeypatch):
    def line(*arguments) -> str:
        assert run("encode", "--data", folder, "--out", tmp_path / "tokens", *arguments) == 2
        text = capsys.readouterr().err
        assert text.count("\n") == 1
        return text

    assert "does not say for what image size" in line("--tokenizer", dc)
    assert "30x32 is not divisible by the patch 8" in line("--tokenizer", dc, "--size", "30x32")
    assert "'big' is not a whole number" in line("--size", "big")
    assert "its image size is read from its config.json" in line("--size", "64")
    other = tmp_path / "other"
    other.mkdir()
    (other / "config.json").write_text('{"_class_name": "AutoencoderTiny"}')
    assert "AutoencoderTiny of diffusers, not one of AutoencoderKL" in line("--tokenizer", other)
    (other / "config.json").write_text('{"_class_name": "AutoencoderKL", "sample_size": 32}')
    assert "config.json lacks" in line("--tokenizer", other)
    train = ["train", "tokenizer", "--recipe", "tiny", "--data", folder, "--out", tmp_path / "run"]
    assert run(*train, "--init", kl) == 2
    assert "init takes a tokenizer of softvq" in capsys.readouterr().err
    monkeypatch.setitem(sys.modules, "diffusers", None)
    assert "pip install 'softvq[diffusers]'" in line("--tokenizer", kl)
