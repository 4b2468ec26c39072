"""An arm's figures: counted by hand on pictures whose class is their colour."""

import math

import numpy as np
import pytest
import torch
from skimage.metrics import peak_signal_noise_ratio, structural_similarity

from softvq import images
from softvq.data import Store
from softvq.evaluate import intervals
from softvq.evaluate.features import probe_features
from softvq.evaluate.intervals import Figure, wilson
from softvq.probe import Probe, ProbeConfig
from softvq.study.judging.bench import Bench
from softvq.study.judging.judge import judge, judge_originals, judge_spoilt
from softvq.study.records import RegionFigures
from softvq.study.regions import Region

SIZE = 32
CLASSES = ["crack", "hole", "ok"]  # red, green, blue
# true class, as the original looks, as the reconstruction looks; two photos of each group
TABLE = [
    ("crack", "crack", "crack"),
    ("crack", "crack", "hole"),  # another defect, but found
    ("crack", "crack", "ok"),  # lost
    ("hole", "ok", "hole"),  # never seen in the original
    ("hole", "hole", "hole"),
    ("hole", "hole", "ok"),  # lost
    ("ok", "ok", "ok"),
    ("ok", "hole", "ok"),
]
GROUPS = ["a", "a", "b", "b", "c", "c", "d", "d"]


class ByColour(torch.nn.Module):
    """Stands for a probe: its features are the mean of each colour, its class the strongest."""

    def __init__(self):
        super().__init__()
        self.scale = torch.nn.Parameter(torch.ones(()))

    def features(self, pictures: torch.Tensor) -> torch.Tensor:
        return self.scale * pictures.mean(dim=(2, 3))

    def forward(self, pictures: torch.Tensor) -> torch.Tensor:
        return self.features(pictures)


def painted(looks: list[str], seed: int) -> np.ndarray:
    """uint8 [N, 32, 32, 3], noisy and of the colour of the class that each looks like."""
    pictures = np.random.default_rng(seed).integers(60, 120, (len(looks), SIZE, SIZE, 3))
    for picture, name in zip(pictures, looks, strict=True):
        picture[..., CLASSES.index(name)] += 60
    return pictures.astype(np.uint8)


def photos(true: list[str], pictures: np.ndarray, classes: list[str] = CLASSES) -> Store:
    labels = np.array([classes.index(name) if classes else 0 for name in true], np.int64)
    names = [f"{name}/{i}.png" for i, name in enumerate(true)]
    return Store(pictures, labels, names, classes, [], (SIZE, SIZE), 1.0, "")


def square(photo: int, top: int, left: int, side: int) -> Region:
    mask = np.zeros((SIZE, SIZE), bool)
    mask[top : top + side, left : left + side] = True
    diameter = math.sqrt(4 * side * side / math.pi)
    return Region(photo, mask, diameter, 2 * diameter)


ORIGINALS = painted([row[1] for row in TABLE], 0)
REBUILT = painted([row[2] for row in TABLE], 1)
STORE = photos([row[0] for row in TABLE], ORIGINALS)


def bench(**other) -> Bench:
    return Bench(STORE, ORIGINALS, ByColour(), GROUPS, normal={"ok"}, **other)


def interval(figure: Figure) -> tuple[float, float]:
    return figure.low, figure.high


def test_classes_counted_by_hand():
    found = judge(bench(), REBUILT)
    metrics = found.metrics
    assert metrics["accuracy"].value == 5 / 8
    # Of 6 defect photos 4 are still taken for one; of the 5 found in the originals, 3.
    assert metrics["defect_recall"].value == 4 / 6
    assert metrics["defect_kept"].value == 3 / 5
    assert metrics["defect_kept"].n == 5 and metrics["defect_kept"].groups == 3
    assert interval(metrics["defect_kept"]) == pytest.approx(wilson(1 + 0 + 0.5, 3))
    assert interval(metrics["accuracy"]) == pytest.approx(wilson(0.5 + 0.5 + 0.5 + 1, 4))
    # Of the two good ones one passes in the original, and again.
    assert metrics["false_alarms"].value == 0 and metrics["false_alarms"].n == 1
    # Right before: 6; after: 5; lost: 1, 2 and 5; gained: 3 and 7.
    assert metrics["accuracy_drop"].value == pytest.approx(1 / 8)
    assert found.confusion == [[1, 1, 1], [0, 2, 1], [0, 0, 2]]
    recalls = {name: figures.recall.value for name, figures in found.per_class.items()}
    assert recalls == pytest.approx({"crack": 1 / 3, "hole": 2 / 3, "ok": 1.0})
    assert [figures.n for figures in found.per_class.values()] == [3, 3, 2]


def test_look_is_of_the_originals():
    found = judge_originals(
        bench(regions=[square(0, 4, 4, 5), square(0, 20, 4, 5), square(4, 4, 4, 5)])
    )
    assert found.accuracy.value == 6 / 8 and found.defect_recall.value == 5 / 6
    assert found.confusion == [[3, 0, 0], [0, 2, 1], [0, 1, 1]]
    assert found.classes == CLASSES and found.unmarked == 4
    assert found.per_class["ok"].recall.value == 0.5
    assert judge_originals(bench()).unmarked is None


def test_pixels_by_scikit_image():
    found = judge(bench(), REBUILT)
    pairs = list(zip(ORIGINALS, REBUILT, strict=True))
    psnr = [peak_signal_noise_ratio(a, b) for a, b in pairs]
    ssim = [
        structural_similarity(
            a,
            b,
            gaussian_weights=True,
            sigma=1.5,
            use_sample_covariance=False,
            channel_axis=2,
            data_range=255,
        )
        for a, b in pairs
    ]
    assert found.metrics["psnr"].value == pytest.approx(np.mean(psnr))
    assert found.metrics["ssim"].value == pytest.approx(np.mean(ssim))
    assert found.per_class["hole"].psnr.value == pytest.approx(np.mean(psnr[3:6]))
    assert found.worst == np.argsort(psnr)[:6].tolist()
    expected = intervals.mean(np.array(psnr), GROUPS)
    assert interval(found.metrics["psnr"]) == pytest.approx((expected.low, expected.high))


def test_kernel_distance_of_the_colours():
    """The unbiased estimate written out as sums over pairs."""

    def kernel(a, b):
        return (a @ b / 3 + 1) ** 3

    x, y = (p.mean(axis=(1, 2)) / 127.5 - 1 for p in (ORIGINALS, REBUILT))
    off = [(i, j) for i in range(8) for j in range(8) if i != j]
    within = sum(kernel(x[i], x[j]) + kernel(y[i], y[j]) for i, j in off) / 56
    across = sum(kernel(a, b) for a in x for b in y) / 64
    distance = judge(bench(), REBUILT).metrics["kernel_distance"].value
    assert distance == pytest.approx(within - 2 * across, abs=1e-6)


def test_regions_erased_halved_and_kept():
    """Squares on plain photos; the reconstruction keeps 1, 1/2, 0 or 1/4 of their contrast."""
    sides, kept = [9, 7, 5, 3], [1.0, 0.5, 0.0, 0.25]
    regions = [square(i, 10, 10, side) for i, side in enumerate(sides)]
    clean = np.full((8, SIZE, SIZE, 3), 150, np.uint8)
    rebuilt = clean.copy()
    for region, share in zip(regions, kept, strict=True):
        clean[region.photo][region.mask] = 50
        rebuilt[region.photo][region.mask] = round(150 - 100 * share)
    flat = square(7, 3, 3, 4)  # without contrast: not measured
    where = Bench(STORE, clean, None, GROUPS, regions=[*regions, flat])
    found = judge(where, rebuilt)
    assert [r.contrast for r in found.regions] == pytest.approx([*kept, None], abs=1e-9)
    assert found.regions[2] == RegionFigures(
        photo=2,
        box=(10, 10, 15, 15),
        diameter=regions[2].diameter,
        contrast=pytest.approx(0, abs=1e-9),
    )
    metrics = found.metrics
    assert metrics["contrast_kept"].value == pytest.approx(1.75 / 4)
    assert metrics["contrast_kept"].n == 4 and metrics["contrast_kept"].groups == 2
    assert metrics["regions_surviving"].value == 0.5
    assert interval(metrics["regions_surviving"]) == pytest.approx(wilson(1, 2))
    assert metrics["smallest_surviving"] == Figure(regions[1].diameter)
    assert found.smallest_in_file == 2 * regions[1].diameter
    # Inside, errors are 0, 50, 100 and 75 levels of 255; equal pixels count as 100 dB.
    db = [100.0, *(20 * math.log10(255 / error) for error in (50, 100, 75))]
    assert metrics["psnr_inside"].value == pytest.approx(np.mean([*db, 100.0]))
    bins = found.by_size
    assert [b.n for b in bins] == [1, 1, 1, 1]
    assert [b.low for b in bins] == sorted(r.diameter for r in regions)
    assert [b.contrast for b in bins] == pytest.approx(kept[::-1], abs=1e-9)
    assert [b.surviving for b in bins] == [0, 0, 1, 1]
    assert [b.psnr for b in bins] == pytest.approx(db[::-1])


def test_subgroups():
    column = ["new", "new", "old", "old", "old", "old", "", ""]
    found = judge(bench(subgroups={"camera": column}), REBUILT).subgroups["camera"]
    metrics = {value: subgroup.metrics for value, subgroup in found.items()}
    assert list(found) == ["", "new", "old"]
    assert [figures.n for figures in found.values()] == [2, 2, 4]
    assert metrics[""]["defect_kept"] is None and metrics[""]["accuracy"].value == 1.0
    assert metrics["new"]["defect_kept"].value == 1.0 and metrics["new"]["accuracy"].value == 0.5
    assert metrics["old"]["defect_kept"].value == pytest.approx(1 / 3)
    psnr = [peak_signal_noise_ratio(a, b) for a, b in zip(ORIGINALS, REBUILT, strict=True)]
    assert metrics["old"]["psnr"].value == pytest.approx(np.mean(psnr[2:6]))
    assert metrics["new"]["psnr"].low is None  # one group bounds nothing


def test_own_metrics():
    def shift(originals, rebuilt, names):
        assert names == STORE.names
        return np.abs(originals.mean(axis=(1, 2, 3)) - rebuilt.mean(axis=(1, 2, 3)))

    metrics = {
        "shift": shift,
        "number": lambda *_: 3,
        "unknown": lambda *_: math.nan,
        "endless": lambda *_: np.array([math.inf] * 8),
        "partly": lambda *_: np.array([math.nan] * 4 + [1.0, 2.0, 3.0, 4.0]),
    }
    found = judge(bench(metrics=metrics), REBUILT).metrics
    assert found["shift"].value == pytest.approx(shift(ORIGINALS, REBUILT, STORE.names).mean())
    assert found["shift"].groups == 4
    assert found["number"] == Figure(3.0) and found["unknown"] is None
    assert found["endless"] is None  # what is not finite is no figure
    assert found["partly"].value == 2.5 and found["partly"].groups == 2


def test_equal_pictures():
    found = judge(bench(), ORIGINALS)
    metrics = found.metrics
    assert metrics["psnr"].value == 100.0 and metrics["ssim"].value == pytest.approx(1)
    assert metrics["accuracy_drop"].value == 0 < metrics["accuracy_drop"].high
    assert metrics["defect_kept"].value == 1.0
    assert metrics["defect_kept"].low == pytest.approx(wilson(3, 3)[0])


def test_what_cannot_be_measured_is_none():
    plain = photos([row[0] for row in TABLE], ORIGINALS, [])
    found = judge(Bench(plain, ORIGINALS, None, GROUPS), REBUILT)
    known = {name for name, figure in found.metrics.items() if figure is not None}
    assert known == {"psnr", "ssim"}
    assert found.confusion is None and found.per_class == {} and found.by_size == []
    assert judge_originals(Bench(plain, ORIGINALS, None, GROUPS)).accuracy is None
    # Without a defect-free class there is no telling a defect from another class.
    unknown = judge(Bench(STORE, ORIGINALS, ByColour(), GROUPS), REBUILT).metrics
    assert unknown["defect_kept"] is None and unknown["defect_recall"] is None
    assert unknown["accuracy"].value == 5 / 8
    with pytest.raises(ValueError, match="different shapes"):
        judge(bench(), REBUILT[:4])


def test_brief_compares_with_clean_originals():
    regions = [square(0, 10, 10, 9)]
    clean = ORIGINALS.copy()
    clean[0] = 150
    clean[0][regions[0].mask] = 50
    clean[0, ..., 0] += 30  # still a crack
    inputs = (clean * 0.7).astype(np.uint8)
    where = Bench(STORE, clean, ByColour(), GROUPS, regions=regions, normal={"ok"})
    found = judge_spoilt(where, inputs, inputs)
    assert found["psnr"].value == 100.0  # as good as its input
    assert found["accuracy"].value == 6 / 8 and found["defect_kept"].value == 1.0
    assert found["contrast_kept"].value == pytest.approx(0.7, abs=0.01)
    assert set(found) == {"psnr", "accuracy", "defect_kept", "contrast_kept"}


def test_a_probe_is_asked_as_it_answers():
    torch.manual_seed(0)
    probe = Probe(ProbeConfig(SIZE, SIZE, 3, channels=8))
    torch.nn.init.normal_(probe.head.weight)
    where = Bench(STORE, ORIGINALS, probe, GROUPS, normal={"ok"})
    with torch.no_grad():
        probe.head.bias.copy_(-probe(images.to_tensor(ORIGINALS)).mean(0))  # else all are alike
        answers = probe(images.to_tensor(ORIGINALS)).argmax(1).tolist()
    assert where.detected.predicted.tolist() == answers and len(set(answers)) > 1
    assert where.detected.as_defect.tolist() == [CLASSES[i] != "ok" for i in answers]
    np.testing.assert_array_equal(where.features, probe_features(probe, ORIGINALS))


def test_figures_do_not_depend_on_batches():
    """150 photos are three batches; every figure is the one of all at once."""
    looks = [CLASSES[i % 3] for i in range(150)]
    a, b = painted(looks, 2), painted(looks, 3)
    regions = [square(i, 3, i % 20, 3 + i % 7) for i in range(150)]
    where = Bench(photos(looks, a), a, ByColour(), list(map(str, range(150))), regions, {"ok"})
    found = judge(where, b)
    psnr = [peak_signal_noise_ratio(x, y) for x, y in zip(a, b, strict=True)]
    inside = [
        peak_signal_noise_ratio(x[r.mask], y[r.mask]) for x, y, r in zip(a, b, regions, strict=True)
    ]
    assert found.metrics["psnr"].value == pytest.approx(np.mean(psnr))
    assert found.metrics["psnr_inside"].value == pytest.approx(np.mean(inside))
    assert found.metrics["accuracy"].value == 1.0
    assert [some.n for some in found.by_size] == [38, 38, 37, 37]
