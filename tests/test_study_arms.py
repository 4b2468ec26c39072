"""What a study tries, what stops early, and where arms start."""

from dataclasses import replace

import numpy as np
import pytest
import torch

from softvq import images
from softvq.data import open_store
from softvq.errors import UserError
from softvq.models import open_tokenizer
from softvq.study.arms import MARGIN_DB, Arm, Settings, cost, hopeless, make_arms
from softvq.study.criteria import Criterion, load_criteria, recommend
from softvq.study.start import resampled, starting_point
from softvq.tokenizer import Tokenizer


def shapes(**changes) -> list[tuple[int, int]]:
    settings = Settings("photos", bottlenecks=("softvq",), tokens=(8, 16, 32, 64), **changes)
    return [(arm.tokens, arm.channels) for arm in make_arms(settings)]


def test_what_is_held_while_tokens_are_cut():
    assert shapes(hold="channels") == [(8, 32), (16, 32), (32, 32), (64, 32)]
    assert shapes(hold="floats") == [(8, 128), (16, 64), (32, 32), (64, 16)]
    both = shapes(hold="both")
    assert both == sorted(set(shapes(hold="channels") + shapes(hold="floats")))
    settings = Settings("photos", hold="both", bottlenecks=("kl",))
    held = {(arm.tokens, arm.channels): arm.held for arm in make_arms(settings)}
    assert held[32, 32] == ("channels", "floats") and held[64, 32] == ("channels",)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"hold": "tokens"}, "--hold 'tokens' is none of"),
        ({"bottlenecks": ("soft",)}, "'soft' is none of"),
        ({"tokens": (0, 4)}, "1 or more"),
    ],
)
def test_settings_that_cannot_be(changes, message):
    with pytest.raises(UserError, match=message):
        Settings("photos", **changes)


def test_a_size_that_cannot_be():
    with pytest.raises(UserError, match="--size must be a multiple of 8"):
        Arm("kl", 4, 8, ()).recipe(Settings("photos", (64, 128)), 100, None)


def test_bytes_of_tokens():
    assert Arm("softvq", 16, 32, ()).bytes(1024) == 16 * 32 * 2
    assert Arm("vq", 16, 32, ()).bytes(1024) == 16 * 10 / 8
    assert Arm("vq", 16, 32, ()).bytes(1000) == 16 * 10 / 8


def test_the_hopeless_stop():
    cheap, dear, wide = (Arm("softvq", *shape, ()) for shape in ((8, 32), (16, 32), (8, 64)))
    base = np.random.default_rng(0).normal(30, 2, 40)
    groups = [str(i) for i in range(40)]
    noise = np.random.default_rng(1).normal(0, 0.2, 40)
    quality = {cheap.name: base + 1, dear.name: base + noise, wide.name: base + 3}

    stopped = hopeless(dear, [cheap, dear, wide], quality, groups)
    assert stopped is not None and stopped[0] == wide and stopped[1] == pytest.approx(3, abs=0.1)
    # The wide one is better, but has more numbers; the dear one has more tokens.
    assert hopeless(cheap, [cheap, dear, wide], quality, groups) is None
    # Better by less than the margin, or by chance, is not enough.
    close = quality | {cheap.name: base + 0.9 * MARGIN_DB, dear.name: base}
    assert hopeless(dear, [cheap, dear], close, groups) is None
    lucky = quality | {cheap.name: base + np.where(np.arange(40) == 0, 40, 0), dear.name: base}
    assert hopeless(dear, [cheap, dear], lucky, groups) is None


def test_the_cost_of_a_generator_falls_with_the_tokens():
    settings = Settings("photos")
    found = [
        cost(arm, arm.recipe(settings, 1000, None))
        for arm in (Arm("softvq", 16, 32, ()), Arm("softvq", 64, 32, ()))
    ]
    # Every token takes the same matrix products; attention between tokens comes on top.
    ratio = found[1]["generator_gflops"] / found[0]["generator_gflops"]
    assert 3.9 < ratio < 4.3
    assert found[0]["decode_gflops"] < found[1]["decode_gflops"]


# ---- where arms start ----


def config_of(tokens=16, channels=32, kind="softvq", size=64):
    arm = Arm(kind, tokens, channels, ())
    return arm.recipe(Settings("photos", (size, size)), 1000, None).model


PICTURES = np.random.default_rng(0).integers(0, 256, (4, 64, 64, 3), np.uint8)


def test_an_arm_of_the_same_shape_starts_as_the_source():
    source = open_tokenizer("shipped")
    made = starting_point(config_of(), source, PICTURES, seed=0).eval()
    pixels = torch.rand(2, 3, 64, 64) * 2 - 1
    torch.testing.assert_close(made.reconstruct(pixels), source.reconstruct(pixels))


@pytest.mark.parametrize("changes", [{"tokens": 4}, {"kind": "kl"}, {"kind": "vq"}, {"size": 128}])
def test_what_fits_is_taken(changes):
    source = open_tokenizer("shipped")
    made = starting_point(config_of(**changes), source, PICTURES, seed=0)
    theirs, ours = source.state_dict(), made.state_dict()
    inside = [name for name in ours if ".blocks." in name]
    assert len(inside) > 50
    assert all(torch.equal(ours[name], theirs[name]) for name in inside)
    again = starting_point(config_of(**changes), source, PICTURES, seed=0).state_dict()
    assert all(torch.equal(ours[name], again[name]) for name in ours)


@pytest.mark.parametrize("kind", ["kl", "ae"])
def test_another_bottleneck_says_the_same(kind, tmp_path):
    """On photos that it was not fitted on: SoftVQ's latents are nearly linear in the features."""
    source = open_tokenizer("shipped")
    store = open_store("builtin", "val", (64, 64), tmp_path, 1.0, progress=False)
    pictures = np.asarray(store.images)
    made = starting_point(config_of(kind=kind), source, pictures[::2], seed=0).eval()
    pixels = images.to_tensor(pictures[1::2])
    with torch.no_grad():
        wanted, found = source.encode(pixels).latents, made.encode(pixels).latents
    assert (wanted - found).var() < 0.02 * wanted.var()


def test_codewords_start_on_the_latents():
    source = open_tokenizer("shipped")
    made = starting_point(config_of(kind="vq"), source, PICTURES, seed=0).eval()
    with torch.no_grad():
        latents = source.encode(images.to_tensor(PICTURES)).latents.flatten(0, 1)
    distance = torch.cdist(made.bottleneck.embedding.weight, latents).amin(1)
    assert distance.max() < 0.01


def test_a_corner_is_copied():
    source = open_tokenizer("shipped")
    made = starting_point(config_of(tokens=4), source, PICTURES, seed=0)
    assert torch.equal(made.encoder.latent_tokens, source.encoder.latent_tokens[:, :4])


def test_patches_of_another_size_are_resampled():
    """Of a constant picture the wider kernel sees the same, and paints the same."""
    source = open_tokenizer("shipped")
    wide: Tokenizer = starting_point(config_of(size=128), source, PICTURES, seed=0)
    kernel = "encoder.patch_embed.proj.0.weight"
    small, large = source.state_dict()[kernel], wide.state_dict()[kernel]
    torch.testing.assert_close(large.sum((2, 3)), small.sum((2, 3)), atol=1e-4, rtol=1e-4)
    rows = torch.arange(192.0).view(3, 64, 1).expand(3, 64, 5) // 64  # its channel, everywhere
    wider = resampled("decoder.to_pixels.weight", rows.reshape(192, 5), 8, 16)
    assert torch.equal(wider.view(3, 256, 5), torch.arange(3.0).view(3, 1, 1).expand(3, 256, 5))


# ---- criteria ----


def arm(name, low, high=1.0, value=None, stopped=None, learned=True):
    value = (low + high) / 2 if value is None else value
    figure = {"value": value, "low": low, "high": high}
    return {"name": name, "learned": learned, "stopped": stopped, "metrics": {"kept": figure}}


KEPT = (Criterion("kept", "min", 0.8),)


def test_the_cheapest_that_holds_is_recommended():
    arms = [arm("4", 0.3), arm("8", 0.79), arm("16", 0.81), arm("32", 0.9)]
    found = recommend(arms, KEPT)
    assert found["arm"] == "16" and found["failing"] == {"kept": 2}
    assert [item["arm"] for item in found["cheaper_failed"]] == ["4", "8"]
    assert [a["verdict"]["holds"] for a in arms] == [False, False, True, True]


def test_a_good_value_with_a_wide_interval_is_not_enough():
    arms = [arm("4", 0.5, value=1.0)]
    found = recommend(arms, KEPT)
    assert found["arm"] is None and found["limit"] == "evidence"
    assert recommend([arm("4", 0.1, 0.4)], KEPT)["limit"] is None


def test_neither_baselines_nor_stopped_arms_are_recommended():
    arms = [arm("jpeg", 0.9, learned=False), arm("4", 0.9, stopped={"by": "2"}), arm("8", 0.9)]
    assert recommend(arms, KEPT)["arm"] == "8"
    assert "verdict" not in arms[0]


def test_what_is_not_measured_does_not_hold():
    some = arm("4", 0.9)
    some["metrics"]["kept"] = None
    assert recommend([some], KEPT)["arm"] is None
    assert some["verdict"]["criteria"][0]["why"] == "not measured"
    some["metrics"]["kept"] = {"value": 1.0, "low": None, "high": None}
    assert recommend([some], KEPT)["arm"] is None
    assert some["verdict"]["criteria"][0]["why"] == "one group"


def test_max_counts_the_high_end():
    worst = Criterion("kept", "max", 0.5)
    assert worst.verdict({"value": 0.3, "low": 0.1, "high": 0.49})["holds"]
    assert not worst.verdict({"value": 0.3, "low": 0.1, "high": 0.51})["holds"]
    assert worst.verdict({"value": 0.3})["holds"]  # the user's own number, without an interval


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("criteria: {psrn: {min: 3}}", "psrn.*psnr"),
        ("criteria: {psnr: 30}", r"give it \{min: NUMBER\}"),
        ("criteria: {psnr: {least: 30}}", r"give it \{min: NUMBER\}"),
        ("criteria: {psnr: {min: high}}", "min 'high' is not a number"),
        ("confidence: 95", "not a number between 0 and 1"),
        ("metrics: {psnr: 'a.py:f'}", "measured already"),
        ("- psnr", "no criteria"),
        ("criteria: [", "not valid YAML"),
        ("criterion: {}", "criterion.*criteria"),
    ],
)
def test_criteria_that_cannot_be(tmp_path, text, message):
    path = tmp_path / "criteria.yaml"
    path.write_text(text)
    with pytest.raises(UserError, match=message):
        load_criteria(path)


def test_criteria_from_a_file(tmp_path):
    path = tmp_path / "criteria.yaml"
    path.write_text("confidence: 0.8\ncriteria:\n  psnr: {min: 28}\n  accuracy_drop: {max: 0.1}\n")
    found = load_criteria(path)
    assert found.confidence == 0.8
    assert found.criteria == (
        Criterion("psnr", "min", 28.0),
        Criterion("accuracy_drop", "max", 0.1),
    )
    with pytest.raises(UserError, match="no such file"):
        load_criteria(tmp_path / "none.yaml")


def test_a_recipe_of_a_rung():
    some = Arm("vq", 8, 32, ())
    settings = replace(Settings("photos"), seed=3)
    fresh, warm = some.recipe(settings, 3200, None), some.recipe(settings, 3200, "there")
    assert (fresh.model.bottleneck, fresh.model.tokens, fresh.train.seed) == ("vq", 8, 3)
    assert warm.train.lr < fresh.train.lr and warm.init == "there"
    assert fresh.data.source == "photos" and fresh.data.fit == "stretch"
