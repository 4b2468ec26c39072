"""Drift: the rate of false alarms is what was asked for, and what matters is found and named."""

from dataclasses import replace

import numpy as np
import pytest

from softvq.errors import UserError
from softvq.serve import drift
from softvq.serve.drift import (
    Detector,
    Photo,
    Photos,
    explain,
    load_reference,
    rolling,
    save_reference,
)
from softvq.serve.health import NAMES, health

WINDOW, REFERENCE = 40, 500


def stream(random: np.random.Generator, count: int, shift: float = 0.0, dark: float = 0.0) -> list:
    """Photos of 4 tokens of 6 channels whose figures are drawn, as no tokenizer is needed."""
    return [
        Photo(
            (random.normal(size=(4, 6)) + shift).astype(np.float32),
            -3 + 0.2 * random.normal(),
            0.5 + 0.1 * random.normal(size=len(NAMES)) - dark * (np.arange(len(NAMES)) == 0),
            float(random.beta(8, 2)),
            f"{i}",
        )
        for i in range(count)
    ]


@pytest.fixture(scope="module")
def detector() -> Detector:
    reference = Photos.of(stream(np.random.default_rng(0), REFERENCE))
    return Detector(reference, WINDOW, one_in=100)


def test_the_rate_of_false_alarms(detector):
    random = np.random.default_rng(1)
    alarms = sum(detector.look(Photos.of(stream(random, WINDOW))).alarm for _ in range(600))
    assert 0 <= alarms <= 18  # 6 expected; a fixed reference makes the rate vary by a factor


def with_rare(random: np.random.Generator, count: int) -> Photos:
    """Of 100 photos three whose figures are far from all others'."""
    photos = stream(random, count)
    rare = [replace(p, error=p.error + 4 * random.standard_exponential()) for p in photos]
    chosen = random.random(count) < 0.03
    return Photos.of([r if c else p for r, p, c in zip(rare, photos, chosen, strict=True)])


def test_rare_photos_of_a_window_are_no_drift(monkeypatch):
    """A small reference knows its own rare photos alone: its thresholds are too low for others."""
    random, looked = np.random.default_rng(3), drift.SURE
    alarms = {looked: 0, 1.0: 0}  # with a second look, and without
    for _ in range(60):
        watching = Detector(with_rare(random, 100), 20, one_in=20)
        for window in [with_rare(random, 20) for _ in range(5)]:
            for sure in alarms:
                monkeypatch.setattr(drift, "SURE", sure)
                alarms[sure] += watching.look(window).alarm
    # 15 are expected of 300; windows of one reference go together.
    assert alarms[looked] < 35 and alarms[1.0] > 45


def test_changes_are_found_and_named(detector):
    random = np.random.default_rng(2)
    moved = Photos.of(stream(random, WINDOW, shift=0.4))
    verdict = detector.look(moved)
    assert verdict.figures["mmd"] > 1 and verdict.figures["energy"] > 1
    assert "tokens have moved" in explain(verdict, moved)[0]
    dark = Photos.of(stream(random, WINDOW, dark=0.2))
    verdict = detector.look(dark)
    assert verdict.alarm and verdict.figures["health"] > 1 > verdict.figures["mmd"]
    assert "darker" in explain(verdict, dark)[0]
    assert "暗い" in explain(verdict, dark, "ja")[0]
    still = Photos.of(stream(random, WINDOW))
    assert explain(detector.look(still), still) == ["no change"]


def test_photos_that_drove_it_come_first(detector):
    random = np.random.default_rng(3)
    window = stream(random, WINDOW - 5) + stream(random, 5, shift=3.0)
    verdict = detector.look(Photos.of(window))
    assert {*verdict.drivers[:5]} == {*range(WINDOW - 5, WINDOW)}


def test_mmd_and_energy_are_their_definitions(detector):
    """Against double loops."""
    random = np.random.default_rng(4)
    window = Photos.of(stream(random, WINDOW, shift=0.2))
    x, y = window.tokens.astype(np.float64), detector.reference.tokens.astype(np.float64)

    def distances(a, b):
        return np.sqrt(np.square(a[:, None] - b[None]).sum(-1))

    def mean(matrix):
        n = len(matrix)
        return (matrix.sum() - np.trace(matrix)) / (n * (n - 1))

    kernel = detector._kernel
    mmd = mean(kernel(distances(x, x))) + mean(kernel(distances(y, y)))
    mmd -= 2 * kernel(distances(x, y)).mean()
    energy = 2 * distances(x, y).mean() - mean(distances(x, x)) - mean(distances(y, y))
    found = detector.look(window).figures
    assert found["mmd"] == pytest.approx(mmd / detector.thresholds[0], rel=1e-2)
    assert found["energy"] == pytest.approx(energy / detector.thresholds[1], rel=1e-2)


def test_permuted_windows_are_measured_as_real_ones(detector):
    """The matrix form of the calibration against the form that looks at photos."""
    reference = detector.reference
    member = np.zeros((1, REFERENCE), np.float32)
    member[0, :WINDOW] = 1
    inside, outside = reference.tokens[:WINDOW], reference.tokens[WINDOW:]
    drawn = detector._drawn(member)[0]

    def mean(a):
        return (a.sum() - np.trace(a)) / (len(a) * (len(a) - 1))

    def kernel(a, b):
        return detector._kernel(np.sqrt(np.square(a[:, None] - b[None]).sum(-1)))

    known = mean(kernel(inside, inside)) + mean(kernel(outside, outside))
    known -= 2 * kernel(inside, outside).mean()
    assert drawn[0] == pytest.approx(known, rel=0.02, abs=1e-5)


def test_without_a_judge_the_rest_is_watched():
    random = np.random.default_rng(5)
    blind = [Photo(p.tokens, p.error, p.health, float("nan")) for p in stream(random, 250)]
    detector = Detector(Photos.of(blind), WINDOW, one_in=20)
    verdict = detector.look(Photos.of(blind[:WINDOW]))
    assert "judge" not in verdict.figures and len(verdict.figures) == 5
    assert np.isfinite([*verdict.figures.values()]).all()


def test_too_small_a_reference_is_refused():
    photos = Photos.of(stream(np.random.default_rng(0), 100))
    with pytest.raises(UserError, match="give 200 photos or more, or windows of 20"):
        Detector(photos, WINDOW)


def test_windows_roll():
    photos = stream(np.random.default_rng(0), 13)
    windows = [[p.name for p in w] for w in rolling(photos, 5, 3)]
    assert windows == [[str(i) for i in range(a, a + 5)] for a in (0, 3, 6)]


def test_a_reference_is_read_as_it_is_written(tmp_path):
    photos = Photos.of(stream(np.random.default_rng(0), 30))
    save_reference(photos, tmp_path, "abc")
    again = load_reference(tmp_path, "abc")
    assert np.array_equal(again.tokens, photos.tokens)
    assert np.array_equal(again.scalars, photos.scalars) and again.channels == 6
    with pytest.raises(UserError, match="another tokenizer"):
        load_reference(tmp_path, "other")
    (tmp_path / "reference.safetensors").write_bytes(b"broken")
    with pytest.raises(UserError, match="damaged"):
        load_reference(tmp_path, "abc")


def test_health_says_what_it_says():
    random = np.random.default_rng(0)
    photo = random.integers(0, 256, (32, 40, 3)).astype(np.uint8)
    smooth = (photo // 8 * 0 + 128).astype(np.uint8)
    assert health(smooth).sharpness < health(photo).sharpness
    assert health(np.zeros_like(photo)).dark == 1 and health(np.full_like(photo, 255)).bright == 1
    red = photo.copy()
    red[..., 0] = 255
    assert health(red).red > health(photo).red
    assert len(health(photo).vector()) == len(NAMES)
