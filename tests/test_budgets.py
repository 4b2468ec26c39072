"""Photos of different lengths, and photos by tiles, from the command line to files and back."""

import json
import resource
import subprocess
import sys
from dataclasses import replace
from itertools import pairwise
from pathlib import Path

import numpy as np
import pytest
import torch
from contract import photos, small
from PIL import Image
from safetensors import safe_open
from test_nested import spectral

from softvq import cli
from softvq.coding import decode, reconstruct_all
from softvq.encoding import encode_folder
from softvq.errors import UserError
from softvq.evaluate.cost import tokenizer_cost
from softvq.evaluate.pixels import psnr_per_image
from softvq.images import to_pil, to_uint8
from softvq.models import describe
from softvq.quality import Predictor, Target, search
from softvq.recipe import GeneratorRecipe, TokenizerRecipe, load_recipe
from softvq.tiles import Tiling, decode_tiles, encode_tiles, levels_of
from softvq.tokenizer import Tokenizer
from softvq.tokens import TokenIndex, lengths_of, read_tokens
from softvq.train.generator import GeneratorTask

LEVEL = 13.0  # dB that some of the pictures reach with few of the 8 tokens, some with none


@pytest.fixture(scope="module")
def base(tmp_path_factory) -> Path:
    """A nested tokenizer of 32 px with its predictor, and photos of 32 px in two classes."""
    at = tmp_path_factory.mktemp("budgets")
    torch.manual_seed(0)
    tokenizer = Tokenizer(spectral(bottleneck="ae")).eval()
    tokenizer.latent_mean.normal_()
    tokenizer.latent_std.uniform_(0.5, 2)
    tokenizer.save_pretrained(at / "nested")
    predictor = Predictor(8, 16)
    predictor.fit(tokenizer, [photos(100, seed=1)])
    predictor.save(at / "nested")
    Tokenizer(small(bottleneck="ae")).save_pretrained(at / "fixed")
    for i, picture in enumerate(to_pil(pictures())):
        for split in ("train", "val"):
            path = at / "photos" / split / "ab"[i % 2] / f"{i}.png"
            path.parent.mkdir(parents=True, exist_ok=True)
            picture.save(path)
    return at


def pictures() -> torch.Tensor:
    """As their files hold them."""
    levels = to_uint8(photos(10, seed=5))
    return torch.from_numpy(levels).movedim(-1, 1).float().div(127.5).sub(1)


def run(capsys, *words: object) -> dict:
    capsys.readouterr()
    assert cli.main([*map(str, words), "--json"]) == 0
    return json.loads(capsys.readouterr().out)


def test_each_photo_has_the_fewest_tokens_that_meet_the_target(base, tmp_path, capsys):
    nested, data, out = base / "nested", base / "photos", tmp_path / "tokens"
    words = ("encode", "--tokenizer", nested, "--data", data, "--split", "val", "--out", out)
    facts = run(capsys, *words, "--psnr", LEVEL, "--precision", "fp32")
    tokenizer = Tokenizer.from_pretrained(nested)
    expected = search(tokenizer, pictures(), Target("psnr", LEVEL))
    kept = read_tokens(out)
    order = [int(Path(name).stem) for name in kept.names]
    assert torch.equal(kept.lengths, expected.lengths[order])
    assert kept.lengths.unique().numel() > 2
    present = torch.arange(8) < kept.lengths[:, None]
    whole = tokenizer.normalize(expected.latents)[order]
    torch.testing.assert_close(kept.latents[present], whole[present])
    assert not kept.latents[~present].any()
    # The file holds these numbers and no others.
    with safe_open(out / "tokens-00000.safetensors", "pt") as file:
        assert file.get_slice("latents").get_shape() == [int(kept.lengths.sum()), 16]
    unmet = int((~expected.met).sum())
    assert (
        unmet
        and facts["missed"] == unmet
        and facts["tokens_mean"] == pytest.approx(kept.lengths.double().mean().item())
    )
    # What is told of the folder.
    lengths = lengths_of(out)
    assert lengths == describe(out).lengths and lengths.unmet == unmet
    bounds = [0, 1, 2, 4, 8]
    assert lengths.histogram == tuple(
        (high, int(((kept.lengths > low) & (kept.lengths <= high)).sum()))
        for low, high in pairwise(bounds)
    )
    assert f"target: PSNR >= {LEVEL:g} dB" in str(describe(out))
    # Decoded, each photo is what its tokens are worth, and meets the target if that can be.
    words = ["decode", str(out), "--tokenizer", str(nested), "--precision", "fp32"]
    assert cli.main([*words, "--out", f"{tmp_path}/o"]) == 0
    assert cli.main([*words, "--npz", f"{tmp_path}/o.npz"]) == 0
    rebuilt = np.stack(
        [np.asarray(Image.open(tmp_path / "o" / f"{n[:-4]}.png")) for n in kept.names]
    )
    (own,) = decode(tokenizer, kept.latents, lengths=kept.lengths)
    assert np.array_equal(rebuilt, own)
    assert np.array_equal(np.load(f"{tmp_path}/o.npz")["arr_0"], own)
    met = psnr_per_image(to_uint8(pictures()[order]), rebuilt) >= LEVEL - 1e-6
    assert torch.equal(torch.from_numpy(met), expected.met[order])


def test_a_stopped_encoding_goes_on_and_another_target_is_refused(base, tmp_path):
    tokenizer = Tokenizer.from_pretrained(base / "nested")
    out, target = tmp_path / "tokens", Target("psnr", LEVEL)
    for _ in range(2):
        encode_folder(tokenizer, base / "photos", out, "val", progress=False, keep=target)
        first = read_tokens(out)
        (out / "tokens-00000.safetensors").unlink()
    encode_folder(tokenizer, base / "photos", out, "val", progress=False, keep=target)
    assert torch.equal(read_tokens(out).latents, first.latents)
    for keep in (None, Target("psnr", LEVEL + 1), 8):
        with pytest.raises(UserError, match="another target"):
            encode_folder(tokenizer, base / "photos", out, "val", progress=False, keep=keep)


def test_measures_take_a_count_a_target_and_a_curve(base, capsys):
    common = ("--tokenizer", base / "nested", "--data", base / "photos")
    words = ("evaluate", "reconstruction", *common)
    tokenizer = Tokenizer.from_pretrained(base / "nested")

    def psnr(tokens: object) -> float:
        return float(
            np.mean(psnr_per_image(*reconstruct_all(tokenizer, pictures(), tokens=tokens)))
        )

    four = run(capsys, *words, "--tokens", 4)
    assert four["psnr_db"] == pytest.approx(psnr(4), abs=1e-3)
    assert (four["tokens"], four["floats_per_image"]) == (4, 64)
    found = search(tokenizer, pictures(), Target("psnr", LEVEL))
    own = run(capsys, *words, "--psnr", LEVEL)
    assert own["psnr_db"] == pytest.approx(psnr(Target("psnr", LEVEL)), abs=1e-3)
    assert own["tokens"] == pytest.approx(found.lengths.double().mean().item())
    assert own["missed"] == int((~found.met).sum())
    told = run(capsys, *words, "--psnr", LEVEL, "--predict")
    assert 1 <= told["tokens"] <= 8 and told["missed"] <= 10
    curve = run(capsys, *words, "--curve")["curve"]
    assert [row["tokens"] for row in curve] == [1, 2, 4, 8]
    assert curve[2]["psnr_db"] == pytest.approx(four["psnr_db"], abs=1e-3)
    values = [row["psnr_db"] for row in curve]
    assert values == sorted(values)
    for more in (("--tokens", 3), ("--psnr", LEVEL)):
        latents = run(capsys, "evaluate", "latents", *common, *more)
        assert len(latents["token_contributions_db"]) == (3 if "--tokens" in more else 8)
    assert latents["tokens_mean"] == pytest.approx(own["tokens"], abs=1e-3)


def test_cost_of_fewer_tokens(base, capsys):
    def parts(*more: object) -> dict:
        small_one = ("--generator", "tiny-generator")
        return run(capsys, "cost", base / "nested", *small_one, *more)["systems"][0]

    recipe = load_recipe(TokenizerRecipe, "nested").model  # codebooks and all, without memory
    counts = [sum(x.flops for x in tokenizer_cost(recipe, k).values()) for k in (1, 64)]
    assert 0 < counts[0] < counts[1]
    whole, some = parts(), parts("--tokens", 2)
    assert (whole["tokens"], some["tokens"]) == (8, 2)
    flops = [each["parts"]["encoder"]["flops"] for each in (some, whole)]
    assert flops[0] < flops[1]
    assert cli.main(["cost", str(base / "fixed"), "--tokens", "2"]) == 2
    assert "no nested tokenizer" in capsys.readouterr().err


def test_a_generator_refuses_photos_of_different_lengths(base, tmp_path):
    tokenizer = Tokenizer.from_pretrained(base / "nested")
    out = tmp_path / "tokens"
    target = Target("psnr", LEVEL)
    encode_folder(tokenizer, base / "photos", out, "val", progress=False, keep=target)
    tokens, recipe = read_tokens(out), load_recipe(GeneratorRecipe, "tiny-generator")
    with pytest.raises(UserError, match="one number of tokens.*without --psnr and --eye"):
        GeneratorTask(recipe, tokenizer, tokens, tokens)


@pytest.mark.parametrize(
    ("words", "said"),
    [
        ("--psnr 20 --tokens 3", "--tokens and --psnr exclude each other"),
        ("--psnr 20 --eye 0.2", "--psnr and --eye exclude each other"),
        ("--psnr -3", "--psnr: '-3' is not a number above 0"),
        ("--predict", "--predict goes with --psnr or --eye"),
        ("--overlap 3", "--overlap goes with --tile"),
        ("--tile 0", "--tile: '0' is not a whole number"),
        ("--tile 33", "tiles of 33 pixels: the side must divide by 8"),
        ("--tile auto --overlap 32", "cannot overlap by 32; give 0 to 31"),
        ("--tokenizer {base}/fixed --psnr 20", "it is not nested"),
    ],
)
def test_what_cannot_be_asked(base, tmp_path, capsys, words, said):
    asked = words.format(base=base).split()
    if "--tokenizer" not in asked:
        asked += ["--tokenizer", str(base / "nested")]
    out = tmp_path / "tokens"
    assert cli.main(["encode", "--data", str(base / "photos"), "--out", str(out), *asked]) == 2
    assert said in capsys.readouterr().err and not out.exists()


def test_predicting_without_a_predictor(base, tmp_path, capsys):
    Tokenizer.from_pretrained(base / "nested").save_pretrained(tmp_path / "bare")
    words = ["--tokenizer", str(tmp_path / "bare"), "--data", str(base / "photos")]
    assert (
        cli.main(["encode", *words, "--out", str(tmp_path / "o"), "--eye", "1", "--predict"]) == 2
    )
    assert "no lengths.safetensors there; search, or fit one" in capsys.readouterr().err


# ---- tiles ----


@pytest.fixture(scope="module")
def large(tmp_path_factory) -> Path:
    """Photos of other sizes than the tokenizer's, one smaller than a tile."""
    at = tmp_path_factory.mktemp("large")
    for i, (height, width) in enumerate([(100, 75), (40, 64), (20, 130)]):
        to_pil(photos(1, height, width, seed=i))[0].save(at / f"{i}.png")
    return at


@pytest.mark.parametrize("more", [(), ("--tokens", 3), ("--psnr", 20)])
def test_photos_by_tiles_keep_their_size(base, large, tmp_path, capsys, more):
    nested, out = base / "nested", tmp_path / "tokens"
    words = (
        "encode",
        "--tokenizer",
        nested,
        "--data",
        large,
        "--out",
        out,
        "--tile",
        "auto",
        *more,
    )
    facts = run(capsys, *words)
    assert facts["new"] == 3 and run(capsys, *words)["new"] == 0
    index = TokenIndex.read(out)
    assert index.tiling == Tiling((32, 32), 4) and list(index.shards.values()) == [1, 1, 1]
    assert describe(out).overlap == 4
    (out / "tokens-00001.safetensors").unlink()
    assert run(capsys, *words)["new"] == 1
    assert (
        run(capsys, "decode", out, "--tokenizer", nested, "--out", tmp_path / "o")["pictures"] == 3
    )
    tokenizer = Tokenizer.from_pretrained(nested)
    budget = {(): None, ("--tokens", 3): 3, ("--psnr", 20): Target("psnr", 20.0)}[more]
    for path in large.iterdir():
        levels = torch.from_numpy(np.asarray(Image.open(path)).copy()).movedim(-1, 0)
        own = decode_tiles(tokenizer, encode_tiles(tokenizer, levels, budget))
        found = np.asarray(Image.open(tmp_path / "o" / path.name)).astype(int)
        assert found.shape == levels_of(own).shape
        assert np.abs(found - levels_of(own)).max() <= 1
    if more == ("--psnr", 20):
        assert lengths_of(out).count == sum(
            index.tiling.count(*size) for size in ((100, 75), (40, 64), (20, 130))
        )
    for command in (
        ("decode", out, "--tokenizer", nested, "--npz", tmp_path / "o.npz"),
        (*words[:6], tmp_path / "tokens", "--tile", "auto", "--overlap", 2),
        (
            "encode",
            "--tokenizer",
            nested,
            "--data",
            "builtin",
            "--out",
            f"{tmp_path}/b",
            "--tile",
            32,
        ),
    ):
        assert cli.main([str(word) for word in command]) == 2


@pytest.mark.slow
def test_a_photo_of_twelve_megapixels_takes_less_than_two_gigabytes(tmp_path):
    """Its seams are no worse than the rest: the error within 8 px is at most 1.05 of that."""
    torch.manual_seed(0)
    config = replace(
        spectral(bottleneck="ae", height=256, width=256, patch=32, tokens=64, channels=32),
        refine_width=48, encoder_width=192, encoder_heads=6, decoder_width=192, decoder_heads=6,
    )  # fmt: skip
    Tokenizer(config).save_pretrained(tmp_path / "nested")
    (tmp_path / "photos").mkdir()
    noise = torch.nn.functional.interpolate(
        torch.randn(1, 3, 94, 125, generator=torch.Generator().manual_seed(0)), (3000, 4000)
    )
    to_pil(noise.mul(0.4).clamp(-1, 1))[0].save(tmp_path / "photos" / "large.png", compress_level=1)
    common = [sys.executable, "-m", "softvq"]
    tail = ["--tokenizer", tmp_path / "nested", "--quiet"]
    encode = ["encode", "--data", tmp_path / "photos", "--out", tmp_path / "t", "--tile", "auto"]
    for words in (encode, ["decode", tmp_path / "t", "--out", tmp_path / "o"]):
        subprocess.run([*common, *words, *tail], check=True)
        assert resource.getrusage(resource.RUSAGE_CHILDREN).ru_maxrss < 2e6  # kB, of the largest
    before, after = (
        np.asarray(Image.open(tmp_path / folder / "large.png"), np.float32)
        for folder in ("photos", "o")
    )
    error = np.square(before - after).mean(-1)
    near = np.zeros(error.shape, bool)
    down, across = Tiling((256, 256), 32).grid(3000, 4000)
    for begins, lines in ((down, near), (across, near.T)):
        for edge in (*begins[1:], *(begin + 256 for begin in begins[:-1])):
            lines[edge - 8 : edge + 8] = True
    assert error[near].mean() <= 1.05 * error[~near].mean()
