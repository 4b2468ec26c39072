"""Judges of photos: their regressions, folds and thresholds by closed form and brute force, and the
two questions, which must not be mixed."""

from dataclasses import replace

import numpy as np
import pytest
from scipy.optimize import minimize
from scipy.spatial.distance import cdist

from softvq.evaluate import judges
from softvq.evaluate.cells import Looker, Seen, chosen, marked_cells
from softvq.evaluate.judges import FOLDS, Question, coreset, folds, logistic, teach, threshold


def random_seen(count=60, cells=16, pieces=1, seed=0):
    random = np.random.default_rng(seed)
    maps = random.normal(size=(count * pieces, cells, 12)).astype(np.float32)
    return Seen(maps, maps.mean(1), maps.max(1), np.repeat(np.arange(count), pieces))


def question(count=60, cells=16, kind="defects", marked=True):
    """Every other photo is defective, in its first cell."""
    defect = np.arange(count) % 2 == 1
    inside = np.zeros((count, cells), bool)
    inside[defect, 0] = marked
    fold = folds([str(i) for i in range(count)], defect.astype(int), 0)
    return Question(kind, defect.astype(int), defect, fold, inside, inside, ~defect | marked)


def planted(seen, where, size=6.0):
    cells = seen.cells.copy()
    cells[where, 0, 0] += size
    return Seen(cells, cells.mean(1), cells.max(1), seen.piece)


@pytest.mark.parametrize("found", [1.0, 4.0])
def test_a_regression_is_at_its_minimum(found):
    random = np.random.default_rng(1)
    x = random.normal(size=(50, 4))
    y = x[:, 0] + random.normal(size=50) > 0.5

    def objective(weight):
        margin = np.where(y, 1, -1) * (x @ weight[:-1] + weight[-1])
        losses = np.where(y, found, 1.0) * np.log1p(np.exp(-margin))
        return 0.7 * losses.sum() + weight[:-1] @ weight[:-1] / 2

    best = minimize(objective, np.zeros(5), method="BFGS", options={"gtol": 1e-8}).x
    np.testing.assert_allclose(logistic(x, y, 0.7, found), best, atol=1e-4)


def test_groups_stay_together_and_strata_are_spread():
    groups = [str(i // 3) for i in range(150)]
    strata = np.repeat(np.arange(50) % 5 == 0, 3).astype(int)  # 10 of 50 groups
    fold = folds(groups, strata, 0)
    assert all(len(set(fold[np.array(groups) == g])) == 1 for g in set(groups))
    rare = [set(np.array(groups)[(fold == k) & (strata == 1)]) for k in range(FOLDS)]
    assert [len(some) for some in rare] == [2] * FOLDS


def test_a_threshold_keeps_to_its_alarms_and_tells_best():
    asked = question(40)
    scores = np.where(asked.defect, 3.0, 0.0) + np.linspace(0, 1, 40)
    everyone = np.ones(40, bool)
    limit = threshold(scores, asked, everyone)
    assert scores[~asked.defect].max() < limit <= scores[asked.defect].min()
    mixed = np.linspace(0, 1, 40)
    alarms = (mixed[~asked.defect] >= threshold(mixed, asked, everyone)).mean()
    assert alarms <= judges.ALARMS + 1 / 20


@pytest.mark.parametrize(
    "kind, marked", [("defects", True), ("defects", False), ("anomalies", True)]
)
def test_a_plain_defect_is_found_by_judges_that_have_not_seen_it(kind, marked):
    asked = question(kind=kind, marked=marked)
    seen = planted(random_seen(), asked.defect, 9.0)
    told = np.array(teach(asked, seen)(seen).predicted, bool)
    assert told[asked.defect].mean() >= 0.9
    assert told[~asked.defect].mean() <= 0.3


def test_the_two_questions_have_two_answers():
    """All photos shift alike: an old judge is at a loss, and one that learns anew is not."""
    asked = question()
    originals = planted(random_seen(), asked.defect, 9.0)
    cells = originals.cells.copy()
    cells[..., 1] += 30.0
    cells[..., 0] *= -1.0
    shifted = Seen(cells, cells.mean(1), cells.max(1), originals.piece)
    dropin = np.array(teach(asked, originals)(shifted).predicted, bool)
    information = np.array(teach(asked, shifted)(shifted).predicted, bool)
    right = (information == asked.defect).mean()
    assert right >= 0.85 and (dropin == asked.defect).mean() < right - 0.2


def test_an_erased_defect_is_lost_to_both():
    asked = question()
    originals, erased = planted(random_seen(), asked.defect, 9.0), random_seen()
    for learn in (originals, erased):
        told = np.array(teach(asked, learn)(erased).predicted, bool)
        assert told[asked.defect].mean() <= 0.5


def test_classes_are_told():
    labels = np.arange(60) % 3
    asked = replace(question(), kind="classes", labels=labels)
    seen = random_seen()
    seen = Seen(seen.cells, seen.mean + 3 * np.eye(12)[labels], seen.top, seen.piece)
    assert (np.array(teach(asked, seen)(seen).predicted) == labels).mean() > 0.9


def test_a_photo_is_its_pieces():
    seen = random_seen(5, pieces=3)
    for i in range(5):
        np.testing.assert_allclose(
            seen.photo[i, :12], seen.mean[3 * i : 3 * i + 3].mean(0), rtol=1e-5
        )
        np.testing.assert_allclose(seen.photo[i, 12:], seen.top[3 * i : 3 * i + 3].max(0))
    other = random_seen(5, pieces=3, seed=1)
    which = np.array([0, 1, 0] * 5)
    mixed = chosen([seen, other], which)
    np.testing.assert_array_equal(mixed.cells[1], other.cells[1])
    np.testing.assert_array_equal(mixed.cells[2], seen.cells[2])


def test_a_coreset_leaves_nothing_farther_than_its_last_choice():
    patches = np.random.default_rng(0).normal(size=(200, 3))
    some = coreset(patches, 20)
    reach = cdist(patches, some).min(1).max()
    inside = cdist(some, some) + np.eye(20) * 9
    assert reach <= inside.min() + 1e-9  # farthest-first: chosen ones are farther apart than that
    assert len(coreset(patches, 500)) == 200


def test_cells_of_masks():
    masks = np.zeros((1, 64, 64), bool)
    masks[0, 16:32, 32:40] = True  # half of cell (1, 2)
    inside, near = marked_cells(masks)
    assert np.flatnonzero(inside[0]).tolist() == [6]
    assert np.flatnonzero(near[0]).tolist() == [2, 5, 6, 7, 10]


def test_the_eye_sees_cells_of_any_size():
    pictures = np.random.default_rng(0).integers(0, 255, (3, 32, 48, 3)).astype(np.uint8)
    looker = Looker()
    seen = looker(pictures, np.arange(3))
    assert seen.cells.shape[:2] == (3, 6) and seen.mean.shape == (3, 624)
    again = looker(pictures[1:2], np.zeros(1, int))
    np.testing.assert_allclose(again.cells[0], seen.cells[1], atol=1e-3)
