"""Everything that is measured on reconstructions of the held-out photos, each with its interval.

The detector has learned from original photos; shown reconstructions, it tells whether they still
mean the same. Photos of one group count as one piece of evidence (``evaluate.intervals``). What
cannot be measured, for want of labels, regions or a defect-free class, is None.
"""

import math
from collections.abc import Callable
from dataclasses import dataclass

import numpy as np

from softvq.coding import BATCH
from softvq.evaluate import intervals
from softvq.evaluate.distances import kernel_distance
from softvq.evaluate.intervals import Figure
from softvq.evaluate.pixels import psnr_per_image, ssim_per_image
from softvq.study.judging.bench import Bench, Detected
from softvq.study.records import (
    ClassFigures,
    Figures,
    Judgement,
    Originals,
    RegionFigures,
    SizeBin,
    Subgroup,
)
from softvq.study.regions import contrast_kept, smallest_surviving

SURVIVES = 0.5  # of its contrast, with which a region is still there
BINS = 4  # of region sizes
WORST = 6  # photos that are named
# The PSNR of equal pictures is infinite and would be the mean's. One level in one of the 196,608
# values of a 256x256 photo makes 101 dB.
MOST_DB = 100.0


def judge(bench: Bench, rebuilt: np.ndarray) -> Judgement:
    """All figures of the reconstructions ``rebuilt``, uint8 [N, H, W, 3].

    PSNR above 100 dB counts as 100, so that equal pictures have a mean. Raises ValueError for
    another number or size of pictures, UserError as the user's metrics do.
    """
    detected = bench.detect(rebuilt)
    psnr = bounded_psnr(bench.originals, rebuilt)
    ssim = _in_batches(ssim_per_image, bench.originals, rebuilt)
    contrast, inside = _contrast(bench, rebuilt), _psnr_inside(bench, rebuilt)
    smallest = _smallest(bench, contrast)
    known = ~np.isnan(contrast)
    recognised = _recognised(bench, detected, bench.all)
    metrics: Figures = {
        "psnr": bench.mean(psnr, bench.all),
        "ssim": bench.mean(ssim, bench.all),
        "accuracy": recognised.accuracy,
        "defect_recall": recognised.defect_recall,
        "defect_kept": recognised.defect_kept,
        "false_alarms": recognised.false_alarms,
        "accuracy_drop": _accuracy_drop(bench, detected),
        "kernel_distance": _kernel_distance(bench, rebuilt),
        "contrast_kept": bench.mean(contrast, bench.region_photos),
        "regions_surviving": bench.share(contrast[known] >= SURVIVES, bench.region_photos[known]),
        "smallest_surviving": smallest and Figure(smallest[0]),
        "psnr_inside": bench.mean(inside, bench.region_photos),
        **_own_metrics(bench, rebuilt),
    }
    return Judgement(
        metrics=metrics,
        smallest_in_file=smallest and smallest[1],
        per_class=_per_class(bench, detected, psnr),
        confusion=_confusion(bench, detected),
        by_size=_by_size(bench, contrast, inside),
        subgroups={
            column: {
                value: _subgroup(bench, detected, psnr, np.asarray(values) == value)
                for value in sorted(set(values))
            }
            for column, values in bench.subgroups.items()
        },
        worst=np.argsort(psnr, kind="stable")[:WORST].tolist(),
        regions=[
            RegionFigures(
                region.photo, region.box, region.diameter, None if math.isnan(kept) else kept
            )
            for region, kept in zip(bench.regions, contrast.tolist(), strict=True)
        ],
    )


def judge_originals(bench: Bench) -> Originals:
    """What the detector makes of the originals: it cannot tell more of any arm."""
    recognised = _recognised(bench, bench.detected, bench.all)
    marked = np.isin(np.arange(len(bench.photos)), bench.region_photos)
    return Originals(
        names=bench.photos.names,
        classes=bench.photos.classes,
        accuracy=recognised.accuracy,
        defect_recall=recognised.defect_recall,
        per_class=_per_class(bench, bench.detected, None),
        confusion=_confusion(bench, bench.detected),
        unmarked=int((bench.is_defect & ~marked).sum()) if bench.regions else None,
    )


def judge_spoilt(bench: Bench, spoilt: np.ndarray, rebuilt: np.ndarray) -> Figures:
    """What matters most of reconstructions of spoilt photos; uint8 [N, H, W, 3] both.

    PSNR is against the spoilt photos; the rest is against what is known of the clean originals.
    """
    recognised = _recognised(bench, bench.detect(rebuilt), bench.all)
    return {
        "psnr": bench.mean(bounded_psnr(spoilt, rebuilt), bench.all),
        "accuracy": recognised.accuracy,
        "defect_kept": recognised.defect_kept,
        "contrast_kept": bench.mean(_contrast(bench, rebuilt), bench.region_photos),
    }


# ---- by the detector ----


@dataclass(frozen=True)
class Recognised:
    """What the detector recognises of some photos; None without a detector.

    accuracy:      the share whose class it tells
    defect_recall: the share of the defect photos that it takes for a defect, whichever
    defect_kept:   the same of those defect photos only whose defect it finds in the original
    false_alarms:  the share of the photos that are free of defects, and that it passes in the
                   original, that it takes for a defect: what finds a defect everywhere keeps all
    """

    accuracy: Figure | None = None
    defect_recall: Figure | None = None
    defect_kept: Figure | None = None
    false_alarms: Figure | None = None


def _recognised(bench: Bench, detected: Detected | None, of: np.ndarray) -> Recognised:
    """Of the photos ``of``, bool [N]."""
    original = bench.detected
    if detected is None or original is None:
        return Recognised()
    defect = of & bench.is_defect
    passed = of & ~bench.is_defect & ~original.as_defect
    found = defect & original.as_defect
    right = detected.predicted == bench.photos.labels
    return Recognised(
        bench.share(right[of], of),
        bench.share(detected.as_defect[defect], defect),
        bench.share(detected.as_defect[found], found),
        bench.share(detected.as_defect[passed], passed) if bench.normal else None,
    )


def _accuracy_drop(bench: Bench, detected: Detected | None) -> Figure | None:
    """Accuracy on the originals less that on the reconstructions, of the same photos."""
    original, labels = bench.detected, bench.photos.labels
    if detected is None or original is None:
        return None
    before, after = original.predicted == labels, detected.predicted == labels
    return intervals.difference(before, after, bench.groups, bench.confidence)


def _kernel_distance(bench: Bench, rebuilt: np.ndarray) -> Figure | None:
    """How far the detector's features moved: unbiased for few photos, but not for one."""
    before, after = bench.features, bench.features_of(rebuilt)
    if before is None or after is None or len(before) < 2:
        return None
    return Figure(kernel_distance(before, after)[0])


def _per_class(
    bench: Bench, detected: Detected | None, psnr: np.ndarray | None
) -> dict[str, ClassFigures]:
    figures = {}
    for i, name in enumerate(bench.photos.classes):
        of = bench.photos.labels == i
        figures[name] = ClassFigures(
            n=int(of.sum()),
            recall=bench.share(detected.predicted[of] == i, of) if detected else None,
            psnr=None if psnr is None else bench.mean(psnr[of], of),
        )
    return figures


def _confusion(bench: Bench, detected: Detected | None) -> list[list[int]] | None:
    if detected is None:
        return None
    counts = np.zeros([len(bench.photos.classes)] * 2, np.int64)
    np.add.at(counts, (bench.photos.labels, detected.predicted), 1)
    return counts.tolist()


def _subgroup(
    bench: Bench, detected: Detected | None, psnr: np.ndarray, of: np.ndarray
) -> Subgroup:
    recognised = _recognised(bench, detected, of)
    metrics = {
        "psnr": bench.mean(psnr[of], of),
        "defect_kept": recognised.defect_kept,
        "accuracy": recognised.accuracy,
    }
    return Subgroup(int(of.sum()), metrics)


# ---- by the marked regions ----


def _contrast(bench: Bench, rebuilt: np.ndarray) -> np.ndarray:
    """Contrast kept of each region, [regions]; nan where the original has none."""
    kept = [
        contrast_kept(bench.originals[r.photo], rebuilt[r.photo], r.mask) for r in bench.regions
    ]
    return np.array(kept, np.float64)


def _psnr_inside(bench: Bench, rebuilt: np.ndarray) -> np.ndarray:
    """PSNR within each region, dB [regions]."""
    values = np.zeros(len(bench.regions))
    for first in range(0, len(values), BATCH):
        some = np.s_[first : first + BATCH]
        at = bench.region_photos[some]
        masks = np.stack([region.mask for region in bench.regions[some]])
        values[some] = psnr_per_image(bench.originals[at], rebuilt[at], masks)
    return np.minimum(values, MOST_DB)


def _smallest(bench: Bench, contrast: np.ndarray) -> tuple[float, float] | None:
    """The smallest surviving diameter, in pixels of the study and of the files."""
    study = np.array([region.diameter for region in bench.regions], np.float64)
    size = smallest_surviving(study, contrast, SURVIVES)
    if size is None:
        return None
    return size, max(region.original for region in bench.regions if region.diameter == size)


def _by_size(bench: Bench, contrast: np.ndarray, inside: np.ndarray) -> list[SizeBin]:
    """The regions by diameter, in bins of equal counts, those without contrast left out."""
    diameters = np.array([region.diameter for region in bench.regions], np.float64)
    known = np.flatnonzero(~np.isnan(contrast))
    order = known[np.argsort(diameters[known], kind="stable")]
    return [
        SizeBin(
            low=float(diameters[some[0]]),
            high=float(diameters[some[-1]]),
            n=len(some),
            contrast=float(contrast[some].mean()),
            surviving=float((contrast[some] >= SURVIVES).mean()),
            psnr=float(inside[some].mean()),
        )
        for some in np.array_split(order, BINS)
        if len(some)
    ]


# ---- by the pixels, and by the user ----


def bounded_psnr(a: np.ndarray, b: np.ndarray) -> np.ndarray:
    """PSNR of each pair, [N], at most MOST_DB."""
    return np.minimum(_in_batches(psnr_per_image, a, b), MOST_DB)


def _in_batches(compare: Callable[..., np.ndarray], a: np.ndarray, b: np.ndarray) -> np.ndarray:
    """``compare`` of all pictures, [N]: as float64 they would fill the memory."""
    if a.shape != b.shape:
        raise ValueError(f"pictures of different shapes: {list(a.shape)} and {list(b.shape)}")
    starts = range(0, len(a), BATCH)
    return np.concatenate([compare(a[i : i + BATCH], b[i : i + BATCH]) for i in starts])


def _own_metrics(bench: Bench, rebuilt: np.ndarray) -> Figures:
    found: Figures = {}
    for name, metric in bench.metrics.items():
        value = np.asarray(metric(bench.originals, rebuilt, bench.photos.names), np.float64)
        if value.ndim:
            found[name] = bench.mean(value, bench.all)
        else:
            found[name] = Figure(float(value)) if np.isfinite(value) else None
    return found
