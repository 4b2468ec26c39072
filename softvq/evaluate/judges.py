"""Judges of photos: each learns from some photos and judges others, so that all are evidence.

Photos fall into FOLDS by their groups; a judge learns from all folds but one, and judges that one.
What it learns from and what it judges are two sets of pictures of the same photos:

    drop-in      learns from originals, judges rebuilt photos: what an inspection in use would do
    information  learns from photos rebuilt alike: whether what matters is still in them

Never is one taken for the other: a judge that knows originals alone also measures how much rebuilt
photos look different, and one that knows rebuilt photos what can still be told from them.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import Literal

import numpy as np
from scipy.spatial.distance import cdist

from softvq.evaluate.cells import Seen

JudgeKind = Literal["defects", "anomalies", "classes"]
FOLDS = 5
ALARMS = 0.15  # of the good photos, at most, that a judge may take for bad where it is set
RIDGE = 30.0  # strength of a photo's regression; its features have unit variance in all
CELL_RIDGE = 0.03  # likewise of a cell's
GOOD_CELLS = 8000  # that teach what is no defect
FOUND = 4.0  # how much more a marked cell counts than another
TOP = 3  # cells of a photo that its score is the mean of
BANK = 1000  # patches that an anomaly is the distance to
NEIGHBOURS = 9
FEW_DEFECTS = 10  # groups with a defect below which only good photos teach


@dataclass(frozen=True)
class Judged:
    """What a judge takes each of N photos for, having learned from other groups than its own.

    predicted: the class, or 1 for a defect and 0 for none.  scores: how surely it is a defect, and
    from which ``thresholds`` it is taken for one; [] where classes are told.
    """

    predicted: list[int]
    scores: list[float] = field(default_factory=list)
    thresholds: list[float] = field(default_factory=list)


@dataclass(frozen=True)
class Question:
    """What is to be told of N photos, and what is known of them.

    labels: int64 [N], the class.  defect: bool [N].  fold: int64 [N].  marked, near: bool [M, n],
    the cells inside and around marks.  located: bool [N], whether it is known where its defect is.
    """

    kind: JudgeKind
    labels: np.ndarray
    defect: np.ndarray
    fold: np.ndarray
    marked: np.ndarray
    near: np.ndarray
    located: np.ndarray


def folds(groups: list[str], strata: np.ndarray, seed: int, number: int = FOLDS) -> np.ndarray:
    """The fold [N] of each photo: whole groups, every stratum spread evenly over the folds."""
    index = np.unique(np.asarray(groups), return_inverse=True)[1]
    count = int(index.max()) + 1
    of = np.array([strata[index == g].max() for g in range(count)])
    fold = np.empty(count, np.int64)
    random, start = np.random.default_rng(seed), 0
    for stratum in np.unique(of):
        some = random.permutation(np.flatnonzero(of == stratum))
        fold[some] = (start + np.arange(len(some))) % number
        start += len(some)
    return fold[index]


def which_judge(
    classes: list[str], labels: np.ndarray, defect: np.ndarray, groups: list[str], normal: set[str]
) -> JudgeKind | None:
    """What there is to be judged: defects, anomalies, where few or none are known, or classes."""
    present = {classes[label] for label in labels} if classes else set()
    names = np.asarray(groups)
    if present & normal:
        enough = len(set(names[defect])) >= FEW_DEFECTS and len(set(names[~defect])) >= FOLDS
        return "defects" if enough else "anomalies"
    return "classes" if len(present) > 1 else None


def teach(question: Question, learn: Seen) -> Callable[[Seen], Judged]:
    """Judges that learn from ``learn``; they say what they take each photo for in other pictures.

    The threshold from which a photo of one fold is taken for defective is where it separates the
    photos of the other folds best (Youden 1950), with alarms at most ALARMS.
    """
    if question.kind == "classes":
        classes = _crossed(question, _classes(question, learn))
        return lambda look: Judged(classes(look).argmax(1).tolist())
    methods = [_anomalies]
    if question.kind == "defects":
        methods = [_of_photos] + ([_of_cells] if question.marked.any() else [])
    scorers = [_crossed(question, method(question, learn)) for method in methods]
    own = [scorer(learn) for scorer in scorers]
    scales = [(scores.mean(), scores.std() + 1e-9) for scores in own]

    def total(found: Sequence[np.ndarray]) -> np.ndarray:
        parts = [(s - centre) / spread for s, (centre, spread) in zip(found, scales, strict=True)]
        return np.sum(parts, axis=0)

    known, fold = total(own), question.fold
    limits = [threshold(known[fold != k], question, fold != k) for k in range(FOLDS)]
    limit = np.array(limits)[fold]

    def judge(look: Seen) -> Judged:
        scores = known if look is learn else total([scorer(look) for scorer in scorers])
        return Judged((scores >= limit).astype(int).tolist(), scores.tolist(), limit.tolist())

    return judge


def threshold(scores: np.ndarray, question: Question, of: np.ndarray) -> float:
    """The score from which photos ``of`` (bool [N], ``scores`` theirs) count as defective."""
    good = scores[~question.defect[of]]
    least = float(np.quantile(good, 1 - ALARMS)) if len(good) else 0.0
    if question.kind == "anomalies" or not question.defect[of].any():
        return float(np.nextafter(least, np.inf))
    bad = scores[question.defect[of]]
    tried = np.unique(scores[scores >= least])
    # Between neighbours, not on one of them: a threshold on a score belongs to that photo.
    tried = np.concatenate([tried, (tried[1:] + tried[:-1]) / 2])
    told = [(bad >= t).mean() - (good >= t).mean() for t in tried]
    best = np.flatnonzero(np.array(told) >= max(told) - 1e-12)
    return float(np.median(tried[best]))


Score = Callable[[Seen], np.ndarray]
Fit = Callable[[np.ndarray], Score]  # photos to learn from, bool [N] -> scores of all


def _crossed(question: Question, fit: Fit) -> Score:
    """Scores of every photo by the judge that learned from the other folds."""
    present = sorted(set(question.fold.tolist()))
    judges = {k: fit(question.fold != k) for k in present}

    def score(look: Seen) -> np.ndarray:
        found = {k: judge(look) for k, judge in judges.items()}
        return np.stack([found[k][i] for i, k in enumerate(question.fold.tolist())])

    return score


def _of_photos(question: Question, learn: Seen) -> Fit:
    """A logistic regression on a whole photo's features."""
    compress = _compression(learn)
    x = compress(learn)

    def fit(of: np.ndarray) -> Score:
        weight = logistic(x[of], question.defect[of], RIDGE)
        return lambda look: compress(look) @ weight[:-1] + weight[-1]

    return fit


def _of_cells(question: Question, learn: Seen) -> Fit:
    """A logistic regression on cells: marked ones against those of good photos and those of
    defective ones that are away from marks, so that the style of a photo teaches nothing."""
    teaches = ~question.near & question.located[learn.piece][:, None]
    random = np.random.default_rng(0)

    def fit(of: np.ndarray) -> Score:
        here = of[learn.piece][:, None]
        bad, good = learn.cells[question.marked & here], learn.cells[teaches & here]
        good = good[random.permutation(len(good))[:GOOD_CELLS]]
        x = np.concatenate([bad, good])
        weight = logistic(x, np.arange(len(x)) < len(bad), CELL_RIDGE, FOUND)
        return lambda look: _top(look.cells @ weight[:-1] + weight[-1], look.first)

    return fit


def _anomalies(question: Question, learn: Seen) -> Fit:
    """How far the most unusual cell of a photo is from all cells of good photos (PatchCore: Roth et
    al. 2022), with its weight for places that are rare in the bank, as in anomalib."""

    def fit(of: np.ndarray) -> Score:
        good = (of & ~question.defect)[learn.piece]
        bank = coreset(learn.cells[good].reshape(-1, learn.cells.shape[-1]), BANK)

        def score(look: Seen) -> np.ndarray:
            worst = np.array([_unusual(cells, bank) for cells in look.cells])
            return np.maximum.reduceat(worst, look.first)

        return score

    return fit


def _classes(question: Question, learn: Seen) -> Fit:
    """A ridge regression of photos' features on the classes, which has a closed form where there
    are hundreds of them: W = (X'X + I / RIDGE)^-1 X'Y. Scores are [N, classes]."""
    compress = _compression(learn)
    x = compress(learn)
    aims = np.eye(int(question.labels.max()) + 1)[question.labels]

    def fit(of: np.ndarray) -> Score:
        centre, middle = x[of].mean(0), aims[of].mean(0)
        known = x[of] - centre
        gram = known.T @ known + np.eye(known.shape[1]) / RIDGE
        weight = np.linalg.solve(gram, known.T @ (aims[of] - middle))
        return lambda look: (compress(look) - centre) @ weight + middle

    return fit


def _compression(learn: Seen) -> Score:
    """Photos' features [N, R], standardised, in the directions in which those learned from differ:
    a ridge regression on them is the same as on all."""
    centre, spread = learn.photo.mean(0), learn.photo.std(0) + 1e-3
    scale = spread * np.sqrt(learn.photo.shape[1])

    def scaled(look: Seen) -> np.ndarray:
        return ((look.photo - centre) / scale).astype(np.float64)

    axes = np.linalg.svd(scaled(learn), full_matrices=False)[2].T
    return lambda look: scaled(look) @ axes


def _unusual(cells: np.ndarray, bank: np.ndarray) -> float:
    distances = cdist(cells, bank)
    nearest = distances.min(1)
    most = int(nearest.argmax())
    patch = int(distances[most].argmin())
    around = np.argsort(cdist(bank[patch : patch + 1], bank)[0])[:NEIGHBOURS]
    exponents = distances[most, around]
    weight = 1 - np.exp(nearest[most] - exponents.max()) / np.exp(exponents - exponents.max()).sum()
    return float(weight * nearest[most])


def coreset(patches: np.ndarray, count: int, most: int = 20_000) -> np.ndarray:
    """``count`` of the patches [n, P] that leave none far away: the farthest from those chosen is
    chosen next (greedy k-centre: Gonzalez 1985)."""
    if len(patches) > most:
        patches = patches[np.random.default_rng(0).permutation(len(patches))[:most]]
    if len(patches) <= count:
        return patches
    chosen = [0]
    squares = np.square(patches).sum(1)
    left = squares + squares[0] - 2 * patches @ patches[0]
    for _ in range(count - 1):
        chosen.append(int(left.argmax()))
        one = patches[chosen[-1]]
        left = np.minimum(left, squares + one @ one - 2 * patches @ one)
    return patches[chosen]


def _top(cells: np.ndarray, first: np.ndarray) -> np.ndarray:
    """Scores of cells [M, n] -> of photos [N]: the mean of the TOP highest of each."""
    some = np.split(cells, first[1:])
    return np.array([np.sort(each, axis=None)[-TOP:].mean() for each in some])


def logistic(x: np.ndarray, y: np.ndarray, c: float, found: float = 1.0) -> np.ndarray:
    """Weights [D + 1], the bias last: the minimum of

        c sum_i a_i log(1 + exp(-s_i (w x_i + b))) + |w|^2 / 2,    s_i = 1 if y_i else -1,

    a_i = ``found`` if y_i else 1. By Newton's method: x [n, D], y bool [n].
    """
    x = np.concatenate([x, np.ones((len(x), 1), x.dtype)], axis=1)
    weight = np.zeros(x.shape[1])
    ridge = np.full(x.shape[1], 1 / c)
    ridge[-1] = 1e-6  # the bias is free, but for a problem that has no end
    each = np.where(y, found, 1.0)
    for _ in range(25):
        p = 1 / (1 + np.exp(-np.clip(x @ weight, -30, 30)))
        slope = x.T @ (each * (p - y)) + ridge * weight
        curve = (x * (each * np.maximum(p * (1 - p), 1e-6))[:, None].astype(x.dtype)).T @ x
        step = np.linalg.solve(curve + np.diag(ridge), slope)
        weight = weight - step
        if np.abs(step).max() < 1e-6:
            break
    return weight
