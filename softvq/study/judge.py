"""Everything that is measured on one arm's reconstructions, each figure with its interval.

The classifier has learned from original photos; shown reconstructions, it tells whether they still
mean the same. Photos of one group count as one piece of evidence (``softvq.study.intervals``).
What cannot be measured, for want of labels, regions or a defect-free class, is None.
"""

import math
from collections.abc import Callable
from dataclasses import dataclass, field
from functools import cached_property
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from softvq import images
from softvq.data import Store
from softvq.evaluate.distances import kernel_distance
from softvq.evaluate.features import BATCH
from softvq.evaluate.pixels import psnr_per_image, ssim_per_image
from softvq.study import intervals
from softvq.study.custom import Metric
from softvq.study.intervals import CONFIDENCE, Estimate
from softvq.study.regions import Region, contrast_kept, smallest_surviving

Figures = dict[str, Any]

SURVIVES = 0.5  # of its contrast, with which a region is still there
BINS = 4  # of region sizes
WORST = 6  # photos that are named
# The PSNR of equal pictures is infinite and would be the mean's. One level in one of the 196,608
# values of a 256x256 photo makes 101 dB.
MOST_DB = 100.0


@dataclass(frozen=True)
class Seen:
    """The class [N] that the classifier takes each picture for, and whether it is a defect's."""

    predicted: np.ndarray
    as_defect: np.ndarray


@dataclass
class Ground:
    """What every arm is judged on: held-out photos, and what is known about them.

    photos:     N of them, with their names, labels and classes
    originals:  uint8 [N, H, W, 3], what the reconstructions are compared with
    probe:      a classifier of ``photos.classes`` with ``features(images)``, as an
                ``softvq.probe.Probe``, for pictures of this size; None without labels
    groups:     N names; photos of one group are one piece of evidence
    regions:    marked places in these photos
    normal:     the classes without a defect
    subgroups:  column -> the value of each of the N photos
    confidence: of the two-sided intervals
    metrics:    the user's own, by name
    """

    photos: Store
    originals: np.ndarray
    probe: nn.Module | None
    groups: list[str]
    regions: list[Region] = field(default_factory=list)
    normal: set[str] = field(default_factory=set)
    subgroups: dict[str, list[str]] = field(default_factory=dict)
    confidence: float = CONFIDENCE
    metrics: dict[str, Metric] = field(default_factory=dict)

    @cached_property
    def defect_classes(self) -> np.ndarray:
        """bool [classes]; none is one if no class is known to be defect-free."""
        known = not self.normal.isdisjoint(self.photos.classes)
        return np.array([known and name not in self.normal for name in self.photos.classes], bool)

    @cached_property
    def is_defect(self) -> np.ndarray:
        """bool [N]"""
        if not self.photos.classes:
            return np.zeros(len(self.photos), bool)
        return self.defect_classes[self.photos.labels]

    @cached_property
    def seen(self) -> Seen | None:
        """The originals as the classifier sees them."""
        return self.see(self.originals)

    @cached_property
    def features(self) -> np.ndarray | None:
        """[N, D], the classifier's of the originals."""
        return self.features_of(self.originals)

    @cached_property
    def region_photos(self) -> np.ndarray:
        """int [regions], the photo that each is in."""
        return np.array([region.photo for region in self.regions], np.int64)

    def see(self, pictures: np.ndarray) -> Seen | None:
        """uint8 [N, H, W, 3] as the classifier sees them; None without one."""
        if self.probe is None or not self.photos.classes:
            return None
        predicted = _outputs(self.probe, self.probe.__call__, pictures).argmax(axis=1)
        return Seen(predicted, self.defect_classes[predicted])

    def features_of(self, pictures: np.ndarray) -> np.ndarray | None:
        """[N, D] of uint8 [N, H, W, 3]; None without a classifier."""
        probe: Any = self.probe
        return None if probe is None else _outputs(probe, probe.features, pictures)

    def share(self, kept: np.ndarray, photos: np.ndarray) -> Figures | None:
        """The share that is true of ``kept``, each about the photo in ``photos`` (any index)."""
        return _json(intervals.share(kept, np.asarray(self.groups)[photos], self.confidence))

    def mean(self, values: np.ndarray, photos: np.ndarray) -> Figures | None:
        """The mean of ``values``, each about the photo in ``photos`` (any index)."""
        return _json(intervals.mean(values, np.asarray(self.groups)[photos], self.confidence))


@torch.no_grad()
def _outputs(
    model: nn.Module, compute: Callable[[Tensor], Tensor], pictures: np.ndarray
) -> np.ndarray:
    """What ``compute``, of ``model``, makes of uint8 [N, H, W, 3]: [N, D], float32."""
    device = next(model.parameters()).device
    parts = [
        compute(images.to_tensor(pictures[i : i + BATCH]).to(device)).float().cpu()
        for i in range(0, len(pictures), BATCH)
    ]
    return torch.cat(parts).numpy()


def judge(ground: Ground, rebuilt: np.ndarray) -> Figures:
    """All figures of the reconstructions ``rebuilt``, uint8 [N, H, W, 3], ready for JSON.

    The form is that of an arm in results.json. PSNR above 100 dB counts as 100, so that equal
    pictures have a mean. Raises ValueError for another number or size of pictures, UserError as
    the user's metrics do.
    """
    photos, seen, everywhere = ground.photos, ground.see(rebuilt), _all(ground)
    psnr = bounded_psnr(ground.originals, rebuilt)
    ssim = _in_batches(ssim_per_image, ground.originals, rebuilt)
    contrast, inside = _contrast(ground, rebuilt), _psnr_inside(ground, rebuilt)

    metrics: Figures = {
        "psnr": ground.mean(psnr, everywhere),
        "ssim": ground.mean(ssim, everywhere),
        **_recognised(ground, seen, everywhere),
        "accuracy_drop": _accuracy_drop(ground, seen),
        "kernel_distance": _kernel_distance(ground, rebuilt),
        **_survival(ground, contrast),
        "psnr_inside": ground.mean(inside, ground.region_photos),
    }
    for name, metric in ground.metrics.items():
        value = np.asarray(metric(ground.originals, rebuilt, photos.names), np.float64)
        if value.ndim:
            metrics[name] = ground.mean(value, everywhere)
        else:
            metrics[name] = {"value": float(value)} if np.isfinite(value) else None

    per_class = _recalls(ground, seen)
    for i, name in enumerate(photos.classes):
        of = photos.labels == i
        per_class[name]["psnr"] = ground.mean(psnr[of], of)
    return {
        "metrics": metrics,
        "per_class": per_class,
        "confusion": _confusion(ground, seen),
        "by_size": _by_size(ground, contrast, inside),
        "subgroups": {
            column: {
                value: _subgroup(ground, seen, psnr, np.asarray(values) == value)
                for value in sorted(set(values))
            }
            for column, values in ground.subgroups.items()
        },
        "worst": np.argsort(psnr, kind="stable")[:WORST].tolist(),
        "regions": [
            {
                "photo": region.photo,
                "box": list(region.box),
                "diameter": region.diameter,
                "contrast": None if math.isnan(kept) else kept,
            }
            for region, kept in zip(ground.regions, contrast.tolist(), strict=True)
        ],
    }


def look(ground: Ground) -> Figures:
    """What the classifier makes of the originals: it cannot tell more of any arm.

    Its form is ``originals`` of results.json. ``unmarked`` counts the defect photos without a
    region, None where there are no regions at all: their defect was not marked, or is cropped off.
    """
    seen, everywhere = ground.seen, _all(ground)
    recognised = _recognised(ground, seen, everywhere)
    marked = np.isin(np.arange(len(ground.photos)), ground.region_photos)
    return {
        "accuracy": recognised["accuracy"],
        "defect_recall": recognised["defect_recall"],
        "per_class": _recalls(ground, seen),
        "confusion": _confusion(ground, seen),
        "classes": ground.photos.classes,
        "unmarked": int((ground.is_defect & ~marked).sum()) if ground.regions else None,
    }


def brief(ground: Ground, inputs: np.ndarray, rebuilt: np.ndarray) -> Figures:
    """What matters most of reconstructions of spoilt photos, ``inputs``; uint8 [N, H, W, 3] both.

    PSNR is against the inputs; the rest is against what is known of the clean originals.
    """
    everywhere = _all(ground)
    recognised = _recognised(ground, ground.see(rebuilt), everywhere)
    return {
        "psnr": ground.mean(bounded_psnr(inputs, rebuilt), everywhere),
        "accuracy": recognised["accuracy"],
        "defect_kept": recognised["defect_kept"],
        "contrast_kept": ground.mean(_contrast(ground, rebuilt), ground.region_photos),
    }


def _all(ground: Ground) -> np.ndarray:
    return np.ones(len(ground.photos), bool)


def _json(estimate: Estimate | None) -> Figures | None:
    return estimate.as_dict() if estimate and math.isfinite(estimate.value) else None


def _recognised(ground: Ground, seen: Seen | None, of: np.ndarray) -> Figures:
    """What the classifier recognises of the photos ``of``, bool [N].

    accuracy:      the share whose class it tells
    defect_recall: the share of the defect photos that it takes for a defect, whichever
    defect_kept:   the same of those defect photos only whose defect it finds in the original
    false_alarms:  the share of the photos that are free of defects, and that it passes in the
                   original, that it takes for a defect: what finds a defect everywhere keeps all
    """
    original = ground.seen
    if seen is None or original is None:
        return dict.fromkeys(("accuracy", "defect_recall", "defect_kept", "false_alarms"))
    defect = of & ground.is_defect
    passed = of & ~ground.is_defect & ~original.as_defect
    found = defect & original.as_defect
    right = seen.predicted == ground.photos.labels
    return {
        "accuracy": ground.share(right[of], of),
        "defect_recall": ground.share(seen.as_defect[defect], defect),
        "defect_kept": ground.share(seen.as_defect[found], found),
        "false_alarms": ground.share(seen.as_defect[passed], passed) if ground.normal else None,
    }


def _accuracy_drop(ground: Ground, seen: Seen | None) -> Figures | None:
    """Accuracy on the originals less that on the reconstructions, of the same photos."""
    original, labels = ground.seen, ground.photos.labels
    if seen is None or original is None:
        return None
    before, after = original.predicted == labels, seen.predicted == labels
    return _json(intervals.difference(before, after, ground.groups, ground.confidence))


def _kernel_distance(ground: Ground, rebuilt: np.ndarray) -> Figures | None:
    """How far the classifier's features moved: unbiased for few photos, but not for one."""
    before, after = ground.features, ground.features_of(rebuilt)
    if before is None or after is None or len(before) < 2:
        return None
    return {"value": kernel_distance(before, after)[0]}


def _survival(ground: Ground, contrast: np.ndarray) -> Figures:
    known = ~np.isnan(contrast)
    at = ground.region_photos
    study = np.array([region.diameter for region in ground.regions], np.float64)
    original = np.array([region.original for region in ground.regions], np.float64)
    size = smallest_surviving(study, contrast, SURVIVES)
    return {
        "contrast_kept": ground.mean(contrast, at),
        "regions_surviving": ground.share(contrast[known] >= SURVIVES, at[known]),
        "smallest_surviving": size
        and {"study_px": size, "original_px": float(original[study == size].max())},
    }


def _recalls(ground: Ground, seen: Seen | None) -> dict[str, Figures]:
    labels = ground.photos.labels
    recalls = {}
    for i, name in enumerate(ground.photos.classes):
        of = labels == i
        recall = ground.share(seen.predicted[of] == i, of) if seen else None
        recalls[name] = {"recall": recall, "n": int(of.sum())}
    return recalls


def _confusion(ground: Ground, seen: Seen | None) -> list[list[int]] | None:
    """Photos by their true class (rows) and the class they are taken for (columns)."""
    if seen is None:
        return None
    counts = np.zeros([len(ground.photos.classes)] * 2, np.int64)
    np.add.at(counts, (ground.photos.labels, seen.predicted), 1)
    return counts.tolist()


def _by_size(ground: Ground, contrast: np.ndarray, inside: np.ndarray) -> list[Figures]:
    """The regions by diameter, in bins of equal counts, those without contrast left out."""
    diameters = np.array([region.diameter for region in ground.regions], np.float64)
    known = np.flatnonzero(~np.isnan(contrast))
    order = known[np.argsort(diameters[known], kind="stable")]
    return [
        {
            "low": float(diameters[some[0]]),
            "high": float(diameters[some[-1]]),
            "n": len(some),
            "contrast": float(contrast[some].mean()),
            "surviving": float((contrast[some] >= SURVIVES).mean()),
            "psnr": float(inside[some].mean()),
        }
        for some in np.array_split(order, BINS)
        if len(some)
    ]


def _subgroup(ground: Ground, seen: Seen | None, psnr: np.ndarray, of: np.ndarray) -> Figures:
    recognised = _recognised(ground, seen, of)
    return {
        "n": int(of.sum()),
        "psnr": ground.mean(psnr[of], of),
        "defect_kept": recognised["defect_kept"],
        "accuracy": recognised["accuracy"],
    }


def _in_batches(measure: Callable[..., np.ndarray], a: np.ndarray, b: np.ndarray) -> np.ndarray:
    """``measure`` of all pictures, [N]: as float64 they would fill the memory."""
    if a.shape != b.shape:
        raise ValueError(f"pictures of different shapes: {list(a.shape)} and {list(b.shape)}")
    starts = range(0, len(a), BATCH)
    return np.concatenate([measure(a[i : i + BATCH], b[i : i + BATCH]) for i in starts])


def bounded_psnr(a: np.ndarray, b: np.ndarray) -> np.ndarray:
    """PSNR of each pair, [N], at most MOST_DB."""
    return np.minimum(_in_batches(psnr_per_image, a, b), MOST_DB)


def _psnr_inside(ground: Ground, rebuilt: np.ndarray) -> np.ndarray:
    """PSNR within each region, dB [regions]."""
    values = np.zeros(len(ground.regions))
    for first in range(0, len(values), BATCH):
        some = np.s_[first : first + BATCH]
        at = ground.region_photos[some]
        masks = np.stack([region.mask for region in ground.regions[some]])
        values[some] = psnr_per_image(ground.originals[at], rebuilt[at], masks)
    return np.minimum(values, MOST_DB)


def _contrast(ground: Ground, rebuilt: np.ndarray) -> np.ndarray:
    """Contrast kept of each region, [regions]; nan where the original has none."""
    kept = [
        contrast_kept(ground.originals[r.photo], rebuilt[r.photo], r.mask) for r in ground.regions
    ]
    return np.array(kept, np.float64)
