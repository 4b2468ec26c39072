"""What is left of photos that were rebuilt: measured photo by photo, without a verdict."""

import math
from collections.abc import Callable
from dataclasses import dataclass, replace
from functools import cached_property

import numpy as np

from softvq.coding import BATCH
from softvq.evaluate.cells import Looker, Seen, marked_cells
from softvq.evaluate.custom import Metric
from softvq.evaluate.judges import Judged, Question, folds, teach, which_judge
from softvq.evaluate.pixels import psnr_per_image, ssim_per_image
from softvq.evaluate.regions import Region, contrast_kept
from softvq.study.photos.pieces import Material
from softvq.study.records import Measured
from softvq.train.loop import resolve_precision

# The PSNR of equal pictures is infinite and would be the mean's. One level in one of the 196,608
# values of a 256x256 photo makes 101 dB.
MOST_DB = 100.0
SSIM_OF = 32  # pieces, evenly spread: it is slow, and is read as a mean


@dataclass
class Bench:
    """The evidence, what is known of it, and who judges it.

    classes: of the photos; normal: those without a defect.  metrics: the user's own, by name.
    """

    material: Material
    classes: list[str]
    normal: set[str]
    metrics: dict[str, Metric]
    seed: int

    @cached_property
    def originals(self) -> np.ndarray:
        return self.material.pieces.images

    @cached_property
    def defect(self) -> np.ndarray:
        """bool [N]; nothing is one if no class is known to be free of defects."""
        if not self.normal.intersection(self.classes):
            return np.zeros(len(self.material.names), bool)
        bad = np.array([name not in self.normal for name in self.classes], bool)
        return bad[self.material.labels]

    @cached_property
    def question(self) -> Question | None:
        """What there is to be judged; None for nothing."""
        material = self.material
        kind = which_judge(self.classes, material.labels, self.defect, material.groups, self.normal)
        if kind is None:
            return None
        masks = np.zeros(self.originals.shape[:3], bool)
        for region in material.regions:
            masks[region.photo] |= region.mask
        marked, near = marked_cells(masks)
        located = ~self.defect
        located[material.pieces.photo[[region.photo for region in material.regions]]] = True
        fold = folds(material.groups, material.labels, self.seed)
        return Question(kind, material.labels, self.defect, fold, marked, near, located)

    @cached_property
    def looker(self) -> Looker:
        return Looker(resolve_precision("auto") == "bf16")

    @cached_property
    def seen(self) -> Seen:
        """Features of the originals."""
        return self.looker(self.originals, self.material.pieces.photo)

    def look(self, rebuilt: np.ndarray) -> Seen | None:
        """Features of rebuilt pieces; None where there is nothing to judge."""
        if self.question is None:
            return None
        _ = self.seen  # the originals set up the space of features
        return self.looker(rebuilt, self.material.pieces.photo)

    @cached_property
    def dropin(self) -> Callable[[Seen], Judged] | None:
        """Judges that know originals alone; None where there is nothing to judge."""
        return None if self.question is None else teach(self.question, self.seen)

    @cached_property
    def judged_originals(self) -> Judged | None:
        return None if self.dropin is None else self.dropin(self.seen)

    @cached_property
    def piece_names(self) -> list[str]:
        """One for each piece: its photo's, and which of them it is."""
        counts = self.material.pieces.counts(len(self.material.names))
        seen: dict[int, int] = {}
        names = []
        for photo in self.material.pieces.photo.tolist():
            seen[photo] = seen.get(photo, -1) + 1
            path, dot, suffix = self.material.names[photo].rpartition(".")
            part = f"-{seen[photo]}" if counts[photo] > 1 else ""
            names.append(f"{path}{part}{dot}{suffix}")
        return names


def compare(bench: Bench, rebuilt: np.ndarray, measured: Measured) -> Measured:
    """``measured`` with all that compares rebuilt pieces, uint8 [M, S, S, 3], with the originals.

    PSNR above 100 dB counts as 100. Raises ValueError for another number or size of pictures,
    UserError as the user's metrics do.
    """
    if rebuilt.shape != bench.originals.shape:
        raise ValueError(f"pictures {list(rebuilt.shape)}, not {list(bench.originals.shape)}")
    regions = bench.material.regions
    contrast = [contrast_kept(bench.originals[r.photo], rebuilt[r.photo], r.mask) for r in regions]
    inside = [psnr_inside(bench.originals[r.photo], rebuilt[r.photo], r) for r in regions]
    chosen = np.linspace(0, len(rebuilt) - 1, min(SSIM_OF, len(rebuilt))).astype(int)
    ssim = _in_batches(ssim_per_image, bench.originals[chosen], rebuilt[chosen])
    return replace(
        measured,
        psnr=photo_psnr(bench, piece_psnr(bench, rebuilt)).tolist(),
        ssim=ssim.tolist(),
        contrast=[None if math.isnan(kept) else kept for kept in contrast],
        inside=[min(db, MOST_DB) for db in inside],
        own={name: _own(bench, metric, rebuilt) for name, metric in bench.metrics.items()},
    )


def psnr_inside(original: np.ndarray, rebuilt: np.ndarray, region: Region) -> float:
    """PSNR of a region's pixels; its box has them all, and the rest of the picture costs time."""
    left, top, right, bottom = region.box
    # Channels first: a box may be three pixels high.
    x, y = (some[top:bottom, left:right].transpose(2, 0, 1)[None] for some in (original, rebuilt))
    return float(psnr_per_image(x, y, region.mask[None, top:bottom, left:right])[0])


def judge(bench: Bench, seen: Seen | None, measured: Measured) -> Measured:
    """``measured`` with what both judges say of rebuilt photos, by their features."""
    if seen is None or bench.question is None or bench.dropin is None:
        return measured
    information = teach(bench.question, seen)
    return replace(measured, dropin=bench.dropin(seen), information=information(seen))


def piece_psnr(bench: Bench, rebuilt: np.ndarray) -> np.ndarray:
    """PSNR of each piece, [M], at most MOST_DB."""
    return np.minimum(_in_batches(psnr_per_image, bench.originals, rebuilt), MOST_DB)


def photo_psnr(bench: Bench, pieces: np.ndarray) -> np.ndarray:
    """PSNR of photos [N] from that of their pieces [M]: of the mean of the squared errors."""
    photo = bench.material.pieces.photo
    errors = np.bincount(photo, weights=10 ** (-pieces / 10)) / np.bincount(photo)
    return -10 * np.log10(errors)


def _in_batches(compare: Callable[..., np.ndarray], a: np.ndarray, b: np.ndarray) -> np.ndarray:
    """``compare`` of all pictures, [N]: as float64 they would fill the memory."""
    starts = range(0, len(a), BATCH)
    return np.concatenate([compare(a[i : i + BATCH], b[i : i + BATCH]) for i in starts])


def _own(bench: Bench, metric: Metric, rebuilt: np.ndarray) -> float | list[float | None] | None:
    """The user's metric: one number, or one for each photo, the mean over its pieces."""
    value = np.asarray(metric(bench.originals, rebuilt, bench.piece_names), np.float64)
    if not value.ndim:
        return float(value) if np.isfinite(value) else None
    photo = bench.material.pieces.photo
    means = np.bincount(photo, weights=value) / np.bincount(photo)
    return [float(x) if np.isfinite(x) else None for x in means]
