"""What a study tries, what stops early, and where arms start."""

from dataclasses import replace

import numpy as np
import pytest
import torch

from softvq import images
from softvq.data import open_store
from softvq.errors import UserError
from softvq.evaluate.intervals import Figure
from softvq.models import open_tokenizer
from softvq.study.clock import Clock
from softvq.study.judging.criteria import load_criteria, outcome, recommend, verdict
from softvq.study.records import ArmCost, ArmResult, Criterion, Plan, Stop, read
from softvq.study.settings import MOST_SEED, Settings
from softvq.study.trying.arms import MARGIN_DB, Arm, base_recipe, dominating, make_arms
from softvq.study.trying.rungs import FEWEST, images_per_arm, open_plan
from softvq.study.trying.start import resampled, starting_point
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
        ({"tokens": ()}, "1 or more"),
        (
            {"tokens": (8, 1_000_000_000)},
            "1,000,000,000 tokens of 32 numbers are more",
        ),
        ({"channels": 0}, "--channels must be 1 or more"),
        ({"bottlenecks": ()}, "--bottlenecks is empty; give some of softvq, kl"),
        ({"size": (64, 128)}, "--size must be a multiple of 8"),
        ({"size": (8, 8)}, "--size must be a multiple of 8, one number from 16"),
        ({"fit": "squeeze"}, "--fit 'squeeze' is none of crop, stretch"),
        ({"budget": float("nan")}, "--budget must be a time above 0"),
        ({"images": 0}, "--images must be 1 or more"),
        ({"seed": -1}, "--seed must be from 0"),
        ({"seed": MOST_SEED + 1}, "--seed must be from 0"),
    ],
)
def test_settings_that_cannot_be(changes, message):
    with pytest.raises(UserError, match=message):
        Settings("photos", **changes)


def test_bytes_of_tokens():
    assert base_recipe().model.codebook_size == 1024
    assert Arm("softvq", 16, 32, ()).bytes == 16 * 32 * 2
    assert Arm("vq", 16, 32, ()).bytes == 16 * 10 / 8


def test_what_another_dominates_stops():
    cheap, dear, wide = (Arm("softvq", *shape, ()) for shape in ((8, 32), (16, 32), (8, 64)))
    base = np.random.default_rng(0).normal(30, 2, 40)
    groups = [str(i) for i in range(40)]
    noise = np.random.default_rng(1).normal(0, 0.2, 40)
    quality = {cheap.name: base + 1, dear.name: base + noise, wide.name: base + 3}

    stopped = dominating(dear, [cheap, dear, wide], quality, groups)
    assert stopped is not None and stopped[0] == wide and stopped[1] == pytest.approx(3, abs=0.1)
    # The wide one is better, but has more numbers; the dear one has more tokens.
    assert dominating(cheap, [cheap, dear, wide], quality, groups) is None
    # Better by less than the margin, or by chance, is not enough.
    close = quality | {cheap.name: base + 0.9 * MARGIN_DB, dear.name: base}
    assert dominating(dear, [cheap, dear], close, groups) is None
    lucky = quality | {cheap.name: base + np.where(np.arange(40) == 0, 40, 0), dear.name: base}
    assert dominating(dear, [cheap, dear], lucky, groups) is None


def test_the_cost_of_a_generator_falls_with_the_tokens():
    settings = Settings("photos")
    found = [arm.cost(settings) for arm in (Arm("softvq", 16, 32, ()), Arm("softvq", 64, 32, ()))]
    # Every token takes the same matrix products; attention between tokens comes on top.
    ratio = found[1].generator_gflops / found[0].generator_gflops
    assert 3.9 < ratio < 4.3
    assert found[0].decode_gflops < found[1].decode_gflops


# ---- where arms start ----


def config_of(tokens=16, channels=32, kind="softvq", size=64):
    return Arm(kind, tokens, channels, ()).config(Settings("photos", (size, size)))


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
def test_another_bottleneck_is_fitted_to_the_source(kind, tmp_path):
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


KEPT = (Criterion("kept", "min", 0.8),)


def arm(name, low, high=1.0, value=None, stopped=None, figure=...):
    """An arm of which one figure is known; its price is its name."""
    if figure is ...:
        figure = Figure((low + high) / 2 if value is None else value, low, high, 9, 9)
    return ArmResult(
        name=name,
        kind="softvq",
        bytes=64.0,
        held=(),
        pictures="",
        metrics={"kept": figure},
        tokens=int(name),
        channels=32,
        floats=32,
        rungs=2,
        images_seen=640,
        stopped=stopped,
        cost=ArmCost(1, 1.0, 1.0, 1.0),
        verdict=verdict({"kept": figure}, KEPT),
    )


def test_the_cheapest_that_holds_is_recommended():
    arms = [arm("4", 0.3), arm("8", 0.79), arm("16", 0.81), arm("32", 0.9)]
    found = recommend(arms)
    assert found.arm == "16" and found.failing == {"kept": 2}
    assert found.cheaper_failed == {"4": ["kept"], "8": ["kept"]}
    assert [a.verdict.holds for a in arms] == [False, False, True, True]


def test_a_good_value_with_a_wide_interval_is_not_enough():
    found = recommend([arm("4", 0.5, value=1.0)])
    assert found.arm is None and found.limit == "evidence"
    assert recommend([arm("4", 0.1, 0.4)]).limit is None


def test_stopped_arms_are_not_recommended():
    arms = [arm("4", 0.9, stopped=Stop("2", 1.0, 0)), arm("8", 0.9)]
    assert recommend(arms).arm == "8"
    # An arm that was stopped is no proof either that evidence alone is lacking.
    stopped = [arm("4", 0.5, value=1.0, stopped=Stop("2", 1.0, 0)), arm("8", 0.1, 0.4)]
    assert recommend(stopped).limit is None


def test_what_is_not_measured_does_not_hold():
    some = arm("4", 0, figure=None)
    assert recommend([some]).arm is None and some.verdict.criteria[0].why == "not measured"
    some = arm("4", 0, figure=Figure(1.0, None, None, 9, 1))
    assert recommend([some]).arm is None and some.verdict.criteria[0].why == "one group"


def test_max_counts_the_high_end():
    worst = Criterion("kept", "max", 0.5)
    assert outcome(worst, Figure(0.3, 0.1, 0.49, 9, 9)).holds
    found = outcome(worst, Figure(0.3, 0.1, 0.51, 9, 9))
    assert not found.holds and found.met and found.bound == 0.51
    assert outcome(worst, Figure(0.3)).holds  # the user's own number, without an interval


# ---- how much is trained ----


def test_a_rung_spends_its_share_of_the_budget():
    arms = [Arm("softvq", 8, 32, ()), Arm("softvq", 64, 32, ())]
    plan = Plan({arms[0].name: 100.0, arms[1].name: 50.0})
    settings, batch = Settings("photos", budget=3600), base_recipe().train.batch
    first, second = (images_per_arm(rung, arms, settings, plan) for rung in (0, 1))
    assert first % batch == 0 and (first + second) * (1 / 100 + 1 / 50) == pytest.approx(
        0.62 * 3600, rel=0.02
    )
    assert second == pytest.approx(1.5 * first, rel=0.01)
    alone = images_per_arm(1, arms[:1], settings, plan)
    assert alone == pytest.approx(3 * second, rel=0.01)  # the time of what was stopped is used
    few = images_per_arm(0, arms, Settings("photos", budget=1), plan)
    assert few == FEWEST * batch
    assert images_per_arm(1, arms, Settings("photos", images=640), plan) == 960


def test_speed_is_measured_once_and_only_where_the_budget_is_worth_it(tmp_path, monkeypatch):
    asked = []

    def measured(recipe, photos):
        asked.append(recipe.model.tokens)
        return 30.0

    monkeypatch.setattr("softvq.study.trying.rungs.training_speed", measured)
    settings = Settings("photos", tokens=(4, 8, 16, 32), bottlenecks=("softvq", "kl"))
    arms = make_arms(settings)
    hasty = replace(settings, budget=1.0)
    assert open_plan(arms, hasty, tmp_path / "a", Clock(tmp_path / "a")).speed == {} and not asked
    plan = open_plan(arms, settings, tmp_path / "b", Clock(tmp_path / "b"))
    assert len(asked) == 1 and plan.speed[f"softvq-{asked[0]}x32"] == 30.0
    by_tokens = [plan.speed[f"kl-{tokens}x32"] for tokens in (4, 8, 16, 32)]
    assert by_tokens == sorted(by_tokens, reverse=True) and by_tokens[0] < 2 * by_tokens[-1]
    assert open_plan(arms, settings, tmp_path / "b", Clock(tmp_path / "b")) == plan
    assert len(asked) == 1  # the plan is kept


@pytest.mark.parametrize(
    "content", [b"", b"{", b"[]", b"\xff\xfe", b'{"speed": {"a": "fast"}}', b'{"speed": {"a": NaN}']
)
def test_a_damaged_plan_is_one_line(tmp_path, content):
    (tmp_path / "plan.json").write_bytes(content)
    with pytest.raises(UserError, match="plan.json: damaged, or of another version") as error:
        open_plan([], Settings("photos"), tmp_path, Clock(tmp_path))
    assert "\n" not in str(error.value) and "another --out" in str(error.value)
    (tmp_path / "times.json").write_bytes(content)
    with pytest.raises(UserError, match="times.json: damaged.*delete it"):
        Clock(tmp_path)


@pytest.mark.parametrize(
    ("speed", "images"), [("0", 640), ("-3", 640), ("NaN", 640), ("Infinity", 640), ("30", 0)]
)
def test_a_plan_that_nobody_can_follow_is_one_line(tmp_path, speed, images):
    rung = f'{{"images": {images}, "arms": ["softvq-4x8"], "stopped": null}}'
    (tmp_path / "plan.json").write_text(f'{{"speed": {{"a": {speed}}}, "rungs": [{rung}]}}')
    with pytest.raises(UserError, match="plan.json: damaged, or of another version") as error:
        open_plan([], Settings("photos"), tmp_path, Clock(tmp_path))
    assert "\n" not in str(error.value)


def test_a_plan_of_other_arms_is_refused(tmp_path):
    content = '{"speed": {}, "rungs": [{"images": 640, "arms": ["kl-4x8"], "stopped": null}]}'
    (tmp_path / "plan.json").write_text(content)
    with pytest.raises(UserError, match="names arms that this study does not try"):
        open_plan([], Settings("photos"), tmp_path, Clock(tmp_path))
    assert read(Plan, tmp_path / "plan.json", "").of("kl-4x8")[0].images == 640


# ---- criteria from a file ----


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
        ("criteria: {psnr: {min: .nan}}", "min nan is not a number"),
        ("criteria: {psnr: {max: .inf}}", "max inf is not a number"),
        ("criteria: {psnr: {min: true}}", "min True is not a number"),
        ("criteria: [psnr]", "criteria: has no names.*METRIC: {min: NUMBER}"),
        ("criteria: psnr", "criteria: has no names"),
        ("metrics: [a.py]", "metrics: has no names.*NAME: file.py:function"),
        ("metrics: a.py:f", "metrics: has no names"),
        ("confidence: .nan", "not a number between 0 and 1"),
        ("criteria: " + "[" * 5000, "nested too deeply"),
        ("a: &a [x]\ncriteria: {psnr: {min: *b}}", "not valid YAML"),
    ],
)
def test_criteria_that_cannot_be(tmp_path, text, message):
    path = tmp_path / "criteria.yaml"
    path.write_text(text)
    with pytest.raises(UserError, match=message):
        load_criteria(path)


def test_numbers_that_yaml_reads_as_text_are_numbers(tmp_path):
    path = tmp_path / "criteria.yaml"
    path.write_text("confidence: 9e-1\ncriteria: {psnr: {min: 1e1}, accuracy_drop: {max: 1e-3}}\n")
    found = load_criteria(path)
    assert found.confidence == 0.9 and [c.limit for c in found.criteria] == [10.0, 0.001]


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
