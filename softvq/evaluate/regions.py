"""What matters inside a photo: marked regions, and how much of each a reconstruction keeps.

A region is a defect's mask or box, fitted as its photo is. Kept is its contrast: the slope of the
reconstruction on the original in and just around it, which is 1 where nothing is lost, 0 where the
region is erased, and does not mind a reconstruction that is brighter as a whole.
"""

import math
import warnings
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from softvq.data import Marks, Store, find_marks, find_photos, read_masks
from softvq.data.marks import COVERED
from softvq.errors import SoftVQWarning, UserError

LUMINANCE = np.array([0.299, 0.587, 0.114])  # of R, G, B (ITU-R BT.601), as Pillow's "L"


@dataclass(frozen=True, eq=False)
class Region:
    """One marked place of photo number ``photo``.

    mask:     bool [H, W], in the photo as fitted to the study's size
    diameter: of the disk of its area, sqrt(4 area / pi), in pixels of the study
    original: the same in the photo file's own pixels
    """

    photo: int
    mask: np.ndarray
    diameter: float
    original: float

    @property
    def box(self) -> tuple[int, int, int, int]:
        """left, top, right, bottom of the mask; right and bottom are the first outside."""
        return _bounds(self.mask)


def _bounds(mask: np.ndarray) -> tuple[int, int, int, int]:
    rows, columns = np.nonzero(mask)
    return int(columns.min()), int(rows.min()), int(columns.max()) + 1, int(rows.max()) + 1


def find_regions(
    photos: Store,
    source: str | Path,
    masks: str | Path | None = None,
    boxes: str | Path | None = None,
    classes: set[str] | None = None,
    fit: str = "crop",
    native: bool = False,
) -> list[Region]:
    """The regions of ``photos`` (of ``classes`` only, if given), in the photos' order.

    source: the folder that the photos were listed from
    masks, boxes: as in :func:`softvq.data.find_marks`; with neither, the masks of an MVTec folder.
            Each connected part (corners touch) of a fitted mask is a region, and each box

    Both are fitted as the photos are, by ``images.fit`` in mode ``fit``: of a crop, what lies in
    the overhang is left out. A pixel is inside where at least a quarter of it is; a box smaller
    than that has the one pixel that it covers most.

    Where only held-out photos are marked, training photos have no regions, with a SoftVQWarning.
    Raises UserError as ``find_marks`` does, and if masks or boxes were given and none is for any
    of the photos.
    """
    marks = find_marks(photos.names, source, masks, boxes)
    wanted = [
        i
        for i, label in enumerate(photos.labels)
        if classes is None or (photos.classes and photos.classes[label] in classes)
    ]
    marked = [i for i in wanted if marks[i]]
    given = masks or boxes
    if given is not None and not marked:
        if _held_out_alone(photos, source, masks, boxes):
            warnings.warn(
                f"{given}: marks held-out photos alone; of the training photos only the classes "
                "are known",
                SoftVQWarning,
                stacklevel=2,
            )
            return []
        if masks:
            raise UserError(f"{masks}: no mask for any photo; name each as its photo, with .png")
        raise UserError(
            f"{boxes}: no box for any photo of a defect class; see its names and classes"
        )
    return [
        region
        for i in marked
        for region in _regions_of(i, marks[i], (native and marks[i].size) or photos.size, fit)
    ]


def _held_out_alone(
    photos: Store, source: str | Path, masks: str | Path | None, boxes: str | Path | None
) -> bool:
    """Whether these are training photos, and held-out ones are marked."""
    held_out = find_photos(source, "val").names
    if not set(held_out).isdisjoint(photos.names):
        return False
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", SoftVQWarning)  # said already
        return any(find_marks(held_out, source, masks, boxes))


def _regions_of(photo: int, marks: Marks, size: tuple[int, int], fit: str) -> Iterator[Region]:
    from scipy.ndimage import label  # with scikit-image; takes a moment

    scale = _scale(marks.size or size, size, fit)
    for box in marks.boxes:
        covered = box_cover(box[:4], marks.size or size, size, fit)
        inside = (covered >= COVERED) | ((covered > 0) & (covered == covered.max()))
        if inside.any():
            yield _region(photo, inside, float(covered.sum()), scale)
    if marks.mask:
        parts, count = label(read_masks([marks], size, fit)[0], structure=np.ones((3, 3)))
        for part in range(1, count + 1):
            inside = parts == part
            yield _region(photo, inside, float(inside.sum()), scale)


def _region(photo: int, mask: np.ndarray, area: float, scale: tuple[float, float]) -> Region:
    diameter = math.sqrt(4 * area / math.pi)
    return Region(photo, mask, diameter, diameter / math.sqrt(scale[0] * scale[1]))


def _scale(file: tuple[int, int], size: tuple[int, int], fit: str) -> tuple[float, float]:
    """Study pixels per pixel of the file, down and across, after ``images.fit``."""
    down, across = size[0] / file[0], size[1] / file[1]
    return (down, across) if fit == "stretch" else (max(down, across),) * 2


def box_cover(
    box: Sequence[float], file: tuple[int, int], size: tuple[int, int], fit: str = "crop"
) -> np.ndarray:
    """How much of each pixel [H, W] of the fitted photo a box covers, 0 to 1.

    box: left, top, right, bottom in pixels of the photo file; ``file`` and ``size`` are (height,
    width), of the file and fitted. The sum is the area of what is visible of the box.
    """
    down, across = _scale(file, size, fit)

    def along(low: float, high: float, before: int, after: int, scale: float) -> np.ndarray:
        margin = (before - after / scale) / 2
        edges = np.clip(np.arange(after + 1), (low - margin) * scale, (high - margin) * scale)
        return np.diff(edges)

    rows = along(box[1], box[3], file[0], size[0], down)
    return np.outer(rows, along(box[0], box[2], file[1], size[1], across))


def contrast_kept(original: np.ndarray, rebuilt: np.ndarray, mask: np.ndarray) -> float:
    """How much of a region's contrast a reconstruction keeps: 1 all of it, 0 none.

        sum (x - mean x) (y - mean y) / sum (x - mean x)^2

    x, y: luminance of the original and the reconstruction, [H, W, 3] each, on the mask [H, W]
    widened by a quarter of its diameter, and 2 pixels at least, so that the region's border with
    its surroundings counts. Above 1 if exaggerated, negative if inverted; nan where the mask is
    empty or the original is flat.
    """
    from scipy.ndimage import distance_transform_edt

    if not mask.any():
        return math.nan
    reach = max(2.0, math.sqrt(4 * mask.sum() / math.pi) / 4)
    pad = math.ceil(reach)
    left, top, right, bottom = _bounds(mask)
    window = np.s_[max(top - pad, 0) : bottom + pad, max(left - pad, 0) : right + pad]
    near = distance_transform_edt(~mask[window]) <= reach
    x, y = (picture[window][near] @ LUMINANCE for picture in (original, rebuilt))
    x, y = x - x.mean(), y - y.mean()
    spread = x @ x
    # Of equal pixels the mean is off by rounding only.
    return float(x @ y / spread) if spread > 1e-9 * len(x) else math.nan


def smallest_surviving(
    diameters: np.ndarray, contrast: np.ndarray, least: float = 0.5, share: float = 0.9
) -> float | None:
    """The smallest diameter d such that of the regions of d or more, ``share`` survive.

    A region survives with ``least`` of its contrast; those of unknown contrast (nan) are left out.
    None if there is no such d, not even the largest's.
    """
    diameters, contrast = np.asarray(diameters, np.float64), np.asarray(contrast, np.float64)
    known = ~np.isnan(contrast)
    order = np.argsort(-diameters[known], kind="stable")
    sizes, kept = diameters[known][order], (contrast[known] >= least)[order]
    enough = np.cumsum(kept) >= share * np.arange(1, len(kept) + 1) - 1e-9
    # Regions of one size stand or fall together: only the last of them says "d or more".
    last = np.append(sizes[1:] != sizes[:-1], True)[: len(sizes)]
    found = sizes[enough & last]
    return float(found[-1]) if len(found) else None
