"""Intervals: published values, closed forms, brute force, and how often they hold the truth."""

import itertools

import numpy as np
import pytest

from softvq.evaluate.intervals import Figure, difference, mean, share, wilson

Z90 = 1.6448536269514722


@pytest.mark.parametrize(
    "successes, n, low, high",
    [  # Newcombe (1998), Statistics in Medicine 17:857, table I, method 3, 95%
        (81, 263, 0.2553, 0.3662),
        (15, 148, 0.0624, 0.1605),
        (0, 20, 0.0, 0.1611),
        (1, 29, 0.0061, 0.1718),
    ],
)
def test_wilson_published(successes, n, low, high):
    assert wilson(successes, n, 0.95) == pytest.approx((low, high), abs=5e-5)
    mirrored = wilson(n - successes, n, 0.95)
    assert mirrored == pytest.approx((1 - high, 1 - low), abs=5e-5)


@pytest.mark.parametrize("successes, n", [(3, 7), (2.5, 12), (0, 4), (12, 12)])
def test_wilson_solves_the_score_equation(successes, n):
    """Its ends are where (p - x)^2 = z^2 x (1 - x) / n."""
    for x in wilson(successes, n):
        assert (successes / n - x) ** 2 == pytest.approx(Z90**2 * x * (1 - x) / n, abs=1e-12)


def test_wilson_at_the_ends():
    assert wilson(12, 12)[0] == pytest.approx(12 / (12 + Z90**2)) == pytest.approx(0.816, abs=5e-4)
    assert wilson(12, 12)[1] == 1.0 and wilson(0, 12)[0] == 0.0 and wilson(0, 0) == (0.0, 1.0)
    with pytest.raises(ValueError, match="5 successes of 4"):
        wilson(5, 4)


def test_share_counts_groups_not_photos():
    groups = [f"tile {i // 4}" for i in range(48)]
    perfect = share(np.ones(48, bool), groups)
    assert perfect == Figure(1.0, wilson(12, 12)[0], 1.0, 48, 12)
    half = share(np.arange(48) % 2 == 0, groups)  # half of every group: 6 votes of 12
    assert (half.value, half.low, half.high) == (0.5, *wilson(6, 12))
    alone = share(np.arange(48) % 2 == 0, range(48))
    assert (alone.low, alone.high) == wilson(24, 48)
    assert share(np.zeros(0, bool), []) is None


def test_share_of_unequal_groups_holds_its_value():
    groups = ["large"] * 98 + ["a", "b"]
    found = share(np.arange(100) < 98, groups)
    assert found.value == 0.98 and found.low == wilson(1, 3)[0]
    assert found.high == 0.98 > wilson(1, 3)[1]


def test_mean_of_few_groups_is_the_enumerated_bootstrap():
    """3 groups can be drawn in 27 ways; Hesterberg's tail for 3 is below 1 / 27: the extremes."""
    values, groups = np.array([1.0, 2, 3, 10, 0]), ["a", "a", "b", "c", "c"]
    members = {"a": [1.0, 2], "b": [3.0], "c": [10.0, 0]}
    means = [
        np.mean(np.concatenate([members[g] for g in draw]))
        for draw in itertools.product("abc", repeat=3)
    ]
    found = mean(values, groups)
    assert found.value == pytest.approx(3.2)
    assert (found.low, found.high) == pytest.approx((min(means), max(means)))
    assert (found.n, found.groups) == (5, 3)


def test_mean_of_many_groups_is_the_normal_interval():
    random = np.random.default_rng(1)
    values = random.normal(30, 2, size=2000)
    groups = np.repeat(np.arange(400), 5)
    shared = np.repeat(random.normal(0, 3, size=400), 5)  # members of a group resemble each other
    found = mean(values + shared, groups)
    error = (values + shared).reshape(400, 5).mean(1).std(ddof=1) / 20
    assert found.value == pytest.approx((values + shared).mean())
    assert found.low == pytest.approx(found.value - Z90 * error, abs=0.15 * error)
    assert found.high == pytest.approx(found.value + Z90 * error, abs=0.15 * error)
    assert mean(values + shared, groups) == found  # seeded


@pytest.mark.parametrize("groups", [8, 20])
def test_mean_holds_the_truth_nine_times_in_ten(groups):
    random = np.random.default_rng(groups)
    index = np.repeat(np.arange(groups), 3)
    held = 0
    for _ in range(1000):
        values = random.normal(size=groups)[index] + 0.3 * random.normal(size=len(index))
        found = mean(values, index)
        held += found.low <= 0 <= found.high
    assert 0.87 <= held / 1000 <= 0.93


def test_share_holds_the_truth_nine_times_in_ten():
    """Groups that agree within themselves, 1 to 6 photos each, found with probability 0.8."""
    random = np.random.default_rng(0)
    held = {"groups": 0, "photos": 0}
    for _ in range(1000):
        index = np.repeat(np.arange(15), random.integers(1, 7, size=15))
        kept = (random.random(15) < 0.8)[index]
        for how, groups in (("groups", index), ("photos", np.arange(len(index)))):
            found = share(kept, groups)
            held[how] += found.low <= 0.8 <= found.high
    assert held["groups"] >= 880
    assert held["photos"] < 750  # what the grouping is for


def test_mean_leaves_out_what_is_unknown():
    found = mean(np.array([1.0, np.nan, 3.0]), ["a", "b", "c"])
    assert (found.value, found.n, found.groups) == (2.0, 2, 2)
    assert mean(np.array([np.nan]), ["a"]) is None and mean(np.zeros(0), []) is None
    with pytest.raises(ValueError, match="2 values, but 3 groups"):
        share(np.ones(2, bool), ["a", "b", "c"])


def test_one_group_bounds_nothing():
    found = mean(np.array([1.0, 2.0, 3.0]), ["a"] * 3)
    assert found == Figure(2.0, None, None, 3, 1)


def test_difference():
    n, groups = 12, list(range(12))
    yes, no = np.ones(n, bool), np.zeros(n, bool)
    same = difference(yes, yes, groups)
    proven = 1 - wilson(12, 12)[0]
    assert (same.value, same.low, same.high) == pytest.approx((0.0, -proven, proven))
    lost = difference(yes, no, groups)
    assert (lost.value, lost.high) == (1.0, 1.0) and lost.low < wilson(12, 12)[0]
    before, after = np.arange(n) < 9, np.arange(n) >= 5  # 5 lost, 3 gained
    there, back = difference(before, after, groups), difference(after, before, groups)
    assert there.value == pytest.approx(2 / 12)
    assert (back.value, back.low, back.high) == pytest.approx(
        (-there.value, -there.high, -there.low)
    )
    assert difference(no[:0], no[:0], []) is None


def test_difference_holds_the_truth_nine_times_in_ten():
    random = np.random.default_rng(0)
    held = 0
    for _ in range(1000):
        kind = random.choice(3, p=[0.75, 0.2, 0.05], size=40)  # unchanged, lost, gained
        found = difference(kind != 2, kind != 1, np.arange(40))
        held += found.low <= 0.15 <= found.high
    assert 0.87 <= held / 1000 <= 0.96
