"""Exported models: the resize is Pillow's, the graphs are the library's, and damage is found."""

import hashlib
import json
import shutil
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from softvq import coding, images
from softvq.errors import UserError
from softvq.export import verify
from softvq.export.graphs import DecoderGraph, EncoderGraph, FewStepGraph, Fit, GeneratorGraph
from softvq.generator.config import FlowMapConfig
from softvq.generator.families import draw
from softvq.generator.flowmap import FlowMap
from softvq.generator.sampler import NoiseStreams
from softvq.generator.transformer import SiT, SiTConfig
from softvq.tokenizer import Tokenizer, TokenizerConfig

SIZES = [(8, 8), (64, 64), (64, 65), (333, 77), (77, 333), (31, 9), (200, 129), (129, 200)]


@pytest.mark.parametrize("size", [(64, 64), (48, 32)])
def test_the_resize_is_pillows_bit_for_bit(size):
    random = np.random.default_rng(0)
    for height, width in SIZES:
        photo = random.integers(0, 256, (height, width, 3)).astype(np.uint8)
        wanted = np.asarray(images.fit(Image.fromarray(photo), size))
        found = Fit(size)(torch.from_numpy(photo)[None])[0].movedim(0, -1).numpy()
        assert np.array_equal(found, wanted), (height, width)


def tokenizer(network: str = "vit", nested: bool = False) -> Tokenizer:
    torch.manual_seed(0)
    made = Tokenizer(
        TokenizerConfig(
            height=16, width=24, patch=8, tokens=4, channels=8, codebook_size=16, network=network,
            nested=nested, encoder_width=16, encoder_depth=1, encoder_heads=2, decoder_width=16,
            decoder_depth=1, decoder_heads=2, l2_norm=network == "vit",
            codebooks=2 if network == "spectral" else 1, codebook_axis="channels",
        )
    ).eval()  # fmt: skip
    with torch.no_grad():
        for parameter in made.parameters():
            parameter.add_(torch.randn_like(parameter) * 0.02)
    made.latent_mean.uniform_()
    made.latent_std.uniform_(0.5, 1)
    return made


@pytest.mark.parametrize("network, nested", [("vit", False), ("vit", True), ("spectral", True)])
def test_graphs_compute_what_the_library_does(network, nested):
    made = tokenizer(network, nested)
    photo = odd_photo()
    wanted = coding.encode_all(made, [Image.fromarray(photo)])
    with torch.no_grad():
        latents = EncoderGraph(made)(torch.from_numpy(photo)[None])
        assert torch.allclose(latents, wanted, atol=1e-5)
        for k in (1, 3, 4) if nested else (4,):
            picture = DecoderGraph(made)(latents[:, :k]).numpy()
            known = coding.decode_all(made, latents[:, :k])
            assert np.abs(picture.astype(int) - known).max() <= 1, k


def odd_photo() -> np.ndarray:
    from softvq.export.write import parity_photos

    return list(parity_photos((16, 24)))[1]


SHAPE = {"tokens": 4, "channels": 8, "num_classes": 3, "width": 16, "depth": 1, "heads": 2}


def stirred(network: torch.nn.Module) -> torch.nn.Module:
    """Without the zeros that a generator starts from."""
    torch.manual_seed(0)
    with torch.no_grad():
        for parameter in network.parameters():
            parameter.add_(torch.randn_like(parameter) * 0.1)
    return network.eval()


PICTURE = {"picture": True, "pyramid": 4}  # noise is of variance 1 in the picture


@pytest.mark.parametrize("more", [{}, PICTURE])
def test_the_generators_graph_draws_what_the_library_does(more):
    network = stirred(SiT(SiTConfig(**SHAPE, **more)))
    with torch.no_grad():
        noise = NoiseStreams(0, range(2)).draw(4, 8)
        y = torch.tensor([0, 2])
        for sampler, guidance in (("dpm_solver", 1.5), ("heun", 1.0)):
            found = GeneratorGraph(network, 3, guidance, sampler)(noise, y)
            given = NoiseStreams(0, range(2))
            wanted = draw(network, given, y, steps=3, guidance=guidance, sampler=sampler)
            assert torch.allclose(found, wanted, rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("more", [{}, PICTURE])
def test_a_flow_maps_graph_takes_guidance_as_an_input(more):
    network = stirred(FlowMap(FlowMapConfig(**SHAPE, **more)))
    noise, y = NoiseStreams(0, range(3)).draw(4, 8), torch.tensor([0, 2, 1])
    scale = torch.tensor([1.0, 1.7, 4.0])
    with torch.no_grad():
        for steps in (1, 3):
            found = FewStepGraph(network, steps)(noise, y, scale)
            wanted = draw(network, NoiseStreams(0, range(3)), y, steps=steps, guidance=scale)
            assert torch.allclose(found, wanted, rtol=1e-4, atol=1e-5)
        assert not torch.allclose(FewStepGraph(network, 1)(noise, y, scale.flip(0)), found)


def test_a_flow_maps_parity_holds_guidance():
    from softvq.export.write import _parity, most_guidance

    network = stirred(FlowMap(FlowMapConfig(**SHAPE)))
    arrays = _parity(tokenizer(), network, 2, 1.5)
    given = [
        torch.from_numpy(arrays[f"generator/0/{name}"]) for name in ("noise", "labels", "guidance")
    ]
    assert given[2].tolist() == [1.0, most_guidance(network)] == [1.0, 4.0]
    with torch.no_grad():
        found = FewStepGraph(network, 2)(*given).numpy()
    assert np.allclose(found, arrays["generator/0/output"], atol=1e-5)
    assert most_guidance(SiT(SiTConfig(**SHAPE))) == 0


# ---- files ----


@pytest.mark.parametrize("kind", ["sit", "flowmap"])
def test_a_generators_file_takes_any_batch(tmp_path, kind):
    """A guided batch was cut in halves by a chunk, which ONNX does not have for a free length."""
    from softvq.export.write import _quantise, parts, write_onnx

    made = {"sit": SiT(SiTConfig(**SHAPE)), "flowmap": FlowMap(FlowMapConfig(**SHAPE))}[kind]
    part = parts(tokenizer(), stirred(made), 1, 2.0)[2]
    write_onnx(part, tmp_path / "generator.onnx")
    run = verify.open_onnx(tmp_path / "generator.onnx")
    for count in (1, 3):
        noise = NoiseStreams(0, range(count)).draw(4, 8)
        y = torch.arange(count)
        given = {"noise": noise.numpy(), "labels": y.numpy()}
        options = {"sampler": "dpm_solver", "guidance": 2.0}
        if kind == "flowmap":
            options = {"guidance": torch.full((count,), 3.0)}
            given["guidance"] = options["guidance"].numpy()
        wanted = draw(made, NoiseStreams(0, range(count)), y, steps=1, **options).numpy()
        assert np.abs(run(**given) - wanted).max() <= 1e-4 * np.abs(wanted).max()
    # Every linear layer becomes integers, and no other product.
    import onnx

    _quantise(tmp_path / "generator.onnx")
    graph = onnx.load(tmp_path / "generator.onnx").graph
    done = [node.op_type for node in graph.node]
    layers = sum(isinstance(module, torch.nn.Linear) for module in made.modules())
    assert sum("MatMulInteger" in kind for kind in done) == layers
    int8 = onnx.TensorProto.INT8
    kept = [onnx.numpy_helper.to_array(one) for one in graph.initializer if one.data_type == int8]
    assert sum(one.ndim == 2 for one in kept) >= layers
    assert max(np.abs(one.astype(int)).max() for one in kept) <= 64  # no sum of two overflows
    found = verify.open_onnx(tmp_path / "generator.onnx")(**given)
    assert 1e-4 < np.abs(found - wanted).max() / np.abs(wanted).max() < 0.1


@pytest.fixture(scope="module")
def exported(tmp_path_factory) -> Path:
    from softvq.export.write import export

    folder = tmp_path_factory.mktemp("export")
    tokenizer("spectral", nested=True).save_pretrained(folder / "model")
    checks = export(folder / "model", folder / "onnx")
    assert len(checks) >= 10 and all(check.ok for check in checks)
    return folder / "onnx"


def test_an_export_says_what_it_is(exported):
    manifest = verify.Manifest.read(exported)
    assert (manifest.tokens, manifest.channels, manifest.nested) == (4, 8, True)
    assert {*manifest.files} == {"encoder.onnx", "decoder.onnx", "parity.npz"}


def test_photos_of_any_size_and_number(exported):
    made = tokenizer("spectral", nested=True)
    encode = verify.open_onnx(exported / "encoder.onnx")
    random = np.random.default_rng(1)
    for count, height, width in ((1, 16, 24), (3, 50, 31), (2, 19, 90)):
        photos = random.integers(0, 256, (count, height, width, 3)).astype(np.uint8)
        wanted = coding.encode_all(made, [Image.fromarray(photo) for photo in photos]).numpy()
        assert np.abs(encode(pixels=photos) - wanted).max() <= 1e-4 * np.abs(wanted).max()


def test_codewords_stay_exact_in_8_bits(exported, tmp_path):
    """Integers have no product of several codebooks, and a transform in them is a worse one."""
    from softvq.export.write import _quantise

    shutil.copy(exported / "encoder.onnx", tmp_path)
    _quantise(tmp_path / "encoder.onnx")
    photo = odd_photo()[None]
    wanted = verify.open_onnx(exported / "encoder.onnx")(pixels=photo)
    found = verify.open_onnx(tmp_path / "encoder.onnx")(pixels=photo)
    assert 0 < np.abs(found - wanted).max() / np.abs(wanted).max() < 0.05


def test_a_damaged_weight_is_found(exported, tmp_path):
    import onnx
    from onnx import numpy_helper

    folder = tmp_path / "damaged"
    shutil.copytree(exported, folder)
    model = onnx.load(folder / "encoder.onnx")
    largest = max(model.graph.initializer, key=lambda one: len(one.raw_data))
    values = numpy_helper.to_array(largest).copy()
    values.flat[0] += 10
    largest.CopyFrom(numpy_helper.from_array(values, largest.name))
    onnx.save(model, folder / "encoder.onnx")
    failed = [check.name for check in verify.verify(folder) if not check.ok]
    assert "encoder.onnx" in failed
    # With the hash put right, the outputs still tell.
    said = json.loads((folder / "export.json").read_text())
    said["files"]["encoder.onnx"] = hashlib.sha256(
        (folder / "encoder.onnx").read_bytes()
    ).hexdigest()
    (folder / "export.json").write_text(json.dumps(said))
    failed = [check.name for check in verify.verify(folder) if not check.ok]
    assert failed and all(name.startswith("encoder on") for name in failed)


def test_a_missing_resize_is_found(exported):
    """A model that takes its own size alone, as exports without a resize do."""

    def open_without_resize(path: Path) -> verify.Run:
        run = verify.open_onnx(path)

        def stubborn(**given: np.ndarray) -> np.ndarray:
            if "pixels" in given and given["pixels"].shape[1:3] != (16, 24):
                raise ValueError("Got invalid dimensions for input: pixels")
            return run(**given)

        return stubborn

    failed = [check for check in verify.verify(exported, open_without_resize) if not check.ok]
    assert len(failed) == 3 and all("does not run" in check.found for check in failed)


def test_verify_needs_neither_torch_nor_softvq(exported):
    script = (
        "import sys, runpy\n"
        "for name in ('torch', 'softvq', 'PIL'): sys.modules[name] = None\n"
        f"sys.argv = ['verify.py', {str(exported)!r}]\n"
        f"runpy.run_path({str(exported / 'verify.py')!r}, run_name='__main__')"
    )
    ran = subprocess.run(
        [sys.executable, "-c", script], capture_output=True, text=True, check=False
    )
    assert ran.returncode == 0, ran.stderr
    assert ran.stdout.count("ok  ") >= 10


def test_what_cannot_be_verified_is_one_line(tmp_path):
    with pytest.raises(verify.Unusable, match="no export.json"):
        verify.verify(tmp_path)
    (tmp_path / "export.json").write_text("{")
    with pytest.raises(verify.Unusable, match="damaged"):
        verify.verify(tmp_path)


def test_an_export_replaces_nothing(exported, tmp_path):
    from softvq.export.write import export

    (tmp_path / "mine.txt").write_text("mine")
    with pytest.raises(UserError, match="did not write"):
        export(exported.parent / "model", tmp_path)
    with pytest.raises(UserError, match="--int8 goes with"):
        export(exported.parent / "model", tmp_path / "new", "torch", int8=True)


@pytest.mark.slow
@pytest.mark.parametrize("form, int8", [("onnx", False), ("onnx", True), ("torch", False)])
def test_the_shipped_pipeline_is_exported_whole(tmp_path, form, int8):
    from softvq.export.write import export

    checks = export("shipped", tmp_path / "out", form, int8, steps=2)
    assert any(check.name.startswith("generator on") for check in checks)
    assert all(check.ok for check in checks)
