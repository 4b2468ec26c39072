"""How sure a figure is: intervals that count independent pieces of evidence, not photos.

Several exposures of one part, or a part with and without its defect, are one piece of evidence: a
group. A share's interval counts groups as voters (Wilson 1927), a mean's resamples whole groups.
All intervals are two-sided, so each end alone is surer than ``confidence`` says: at 0.9 either
bound is wrong one time in twenty.
"""

import math
from collections.abc import Hashable, Sequence
from dataclasses import dataclass
from statistics import NormalDist

import numpy as np

Groups = Sequence[Hashable] | np.ndarray

CONFIDENCE = 0.9
DRAWS = 2000  # of the bootstrap; the ends then vary by about 1.5% of the width between seeds
AT_ONCE = 50  # draws held in memory


@dataclass(frozen=True)
class Figure:
    """A value with its interval, and how many photos (or regions) of how many groups it stands on.

    The ends are None where nothing bounds the value: the mean of one group alone. A bare number,
    such as the user's own metric may give, has no ``groups``, and so no interval at all.
    """

    value: float
    low: float | None = None
    high: float | None = None
    n: int | None = None
    groups: int | None = None


def wilson(successes: float, n: float, confidence: float = CONFIDENCE) -> tuple[float, float]:
    """Score interval of a share (Wilson 1927), inside 0..1; (0, 1) for n = 0.

        (p + z^2/2n +- z sqrt(p (1-p)/n + z^2/4n^2)) / (1 + z^2/n),    p = successes / n

    Neither number need be whole. A perfect record proves n / (n + z^2). ValueError for successes
    outside 0..n and for a confidence outside 0..1.
    """
    if not 0 <= successes <= n:
        raise ValueError(f"{successes} successes of {n}")
    if n == 0:
        return 0.0, 1.0
    z2 = NormalDist().inv_cdf((1 + confidence) / 2) ** 2
    p = successes / n
    centre = p + z2 / (2 * n)
    reach = math.sqrt(z2 * (p * (1 - p) / n + z2 / (4 * n * n)))
    low, high = ((centre + side * reach) / (1 + z2 / n) for side in (-1, 1))
    # The ends are 0 and 1 exactly where they must be, whatever the rounding.
    return (0.0 if p == 0 else low), (1.0 if p == 1 else high)


def share(kept: np.ndarray, groups: Groups, confidence: float = CONFIDENCE) -> Figure | None:
    """The share of ``kept``, bool [N], that is true; ``groups`` [N] names each one's group.

    The interval is Wilson's for as many voters as there are groups, each with the share of its own
    members: right if members of a group always agree, too wide otherwise. Where large groups fare
    unlike small ones it is widened to hold the value, which counts members. None for N = 0.
    """
    kept = np.asarray(kept, bool)
    return Figure(*_voted(kept, groups, confidence)) if len(kept) else None


def _voted(
    kept: np.ndarray, groups: Groups, confidence: float
) -> tuple[float, float, float, int, int]:
    """The fields of :func:`share`'s estimate."""
    sums, counts = _by_group(kept, groups)
    value, voters = float(kept.mean()), len(counts)
    low, high = wilson(min(float((sums / counts).sum()), voters), voters, confidence)
    return value, min(low, value), max(high, value), len(kept), voters


def difference(
    before: np.ndarray, after: np.ndarray, groups: Groups, confidence: float = CONFIDENCE
) -> Figure | None:
    """The share of ``before`` less that of ``after``, bool [N] each, of the same photos.

    It is the share lost less the share gained, whose Wilson intervals are squared and added
    (Newcombe 1998; Zou and Donner 2008). Unlike a bootstrap it does not call "no photo changed" of
    a few groups a proof that none ever will. None for N = 0.
    """
    before, after = np.asarray(before, bool), np.asarray(after, bool)
    if not len(before):
        return None
    lost, lost_low, lost_high, n, voters = _voted(before & ~after, groups, confidence)
    gained, gained_low, gained_high, _, _ = _voted(after & ~before, groups, confidence)
    value = lost - gained
    low = value - math.hypot(lost - lost_low, gained_high - gained)
    high = value + math.hypot(lost_high - lost, gained - gained_low)
    return Figure(value, low, high, n, voters)


def mean(values: np.ndarray, groups: Groups, confidence: float = CONFIDENCE) -> Figure | None:
    """The mean of ``values`` [N]; NaN values are left out. None if none is left.

    The interval is the percentile bootstrap over groups, 2000 draws of one seed (so that equal
    evidence is drawn alike), with the percentiles expanded to a Student t's reach for few groups
    (Hesterberg 2015). Below 5 groups no resampling reaches 0.9: with 2 the interval
    is just from the one to the other, and with 1 its ends are None.
    """
    from scipy.special import ndtr, stdtrit  # with scikit-image; takes a moment

    values = np.asarray(values, np.float64)
    known = ~np.isnan(values)
    values, groups = values[known], np.asarray(groups)[known]
    if not len(values):
        return None
    sums, counts = _by_group(values, groups)
    value, number = float(values.mean()), len(counts)
    if number < 2:
        return Figure(value, None, None, len(values), number)
    random, means = np.random.default_rng(0), []
    for _ in range(DRAWS // AT_ONCE):
        drawn = random.integers(number, size=(AT_ONCE, number))
        means.append(sums[drawn].sum(1) / counts[drawn].sum(1))
    level = stdtrit(number - 1, (1 - confidence) / 2) * math.sqrt(number / (number - 1))
    tail = float(ndtr(level))
    low, high = np.quantile(np.concatenate(means), [tail, 1 - tail]).tolist()
    return Figure(value, low, high, len(values), number)


def _by_group(values: np.ndarray, groups: Groups) -> tuple[np.ndarray, np.ndarray]:
    """Sum and number of the values of each group. ValueError for another number of groups."""
    _, index = np.unique(np.asarray(groups), return_inverse=True)
    if len(index) != len(values):
        raise ValueError(f"{len(values)} values, but {len(index)} groups")
    return np.bincount(index, weights=values), np.bincount(index)
