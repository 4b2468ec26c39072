"""The photos that tokens are explained on, and what is known of them."""

import contextlib
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from torch import Tensor

from softvq import images
from softvq.data import Store, find_marks, read_masks, split_of, temporary_store
from softvq.data.table import read_rows
from softvq.errors import UserError
from softvq.explain.directions import Target

CLASSES = 12  # at most, that directions are sought for: the largest
KEYS = {"path", "name", "split", "class"}  # columns that tell photos apart


@dataclass(frozen=True)
class Photos:
    """Photos to explain tokens on.

    fitted, held_out: decoded at the tokenizer's size.  masks_fitted, masks: bool [N, H, W] of what
    is marked in them, None where nothing is.  columns: numbers (or texts of few kinds) of the
    fitted and of the held-out photos, by name; nan (or "") where not known.
    focus: one more picture [3, H, W], not from the folder, and its name.
    """

    fitted: Store
    held_out: Store
    masks_fitted: np.ndarray | None = None
    masks: np.ndarray | None = None
    columns: Sequence["Column"] = ()
    focus: tuple[str, Tensor] | None = None


@dataclass(frozen=True)
class Column:
    """A column of facts about photos: values of the fitted and of the held-out ones, as text."""

    name: str
    fitted: list[str]
    held_out: list[str]


@contextlib.contextmanager
def open_photos(
    source: str | Path,
    size: tuple[int, int],
    masks: str | Path | None = None,
    boxes: str | Path | None = None,
    metadata: str | Path | None = None,
    photo: str | Path | None = None,
    fit: str = "stretch",
    beside: str | Path | None = None,
) -> Iterator[Photos]:
    """The photos of a folder, decoded at ``size`` (H, W), with what masks, boxes and a CSV say.

    photo: one more, to put in focus.  fit: as :func:`softvq.images.fit` says.  beside: where the
    decoded photos lie meanwhile. Raises UserError where ``find_photos``, ``find_marks`` and
    ``read_rows`` do, and for a damaged ``photo``.
    """
    focus = None
    if photo is not None:
        path = Path(photo).expanduser()
        try:
            whole = images.load(path)
        except images.BadImage as bad:
            raise UserError(str(bad)) from None
        focus = path.name, images.to_tensor(np.asarray(images.fit(whole, size, fit)))
    with (
        temporary_store(source, "train", size, beside, fit=fit) as fitted,
        temporary_store(source, "val", size, beside, fit=fit) as held_out,
    ):
        sides = [_masks(store, source, masks, boxes, fit) for store in (fitted, held_out)]
        if (masks or boxes) and sides[1] is None:
            raise UserError(f"{masks or boxes}: nothing is marked in a held-out photo")
        columns = _columns(fitted, held_out, Path(metadata)) if metadata else []
        yield Photos(fitted, held_out, sides[0], sides[1], columns, focus)


def _masks(
    photos: Store,
    source: str | Path,
    masks: str | Path | None,
    boxes: str | Path | None,
    fit: str,
) -> np.ndarray | None:
    marks = find_marks(photos.names, None if str(source) == "builtin" else source, masks, boxes)
    found = read_masks(marks, photos.size, fit)
    return found if found.any() else None


def _columns(fitted: Store, held_out: Store, table: Path) -> list[Column]:
    sides = []
    names: list[str] = []
    for photos in (fitted, held_out):
        splits = all(split_of(name) for name in photos.names)
        names, rows = read_rows(table.expanduser(), photos.names, splits, bool(photos.classes))
        sides.append([some[0] if some else {} for some in rows])
    return [
        Column(name, *([row.get(name, "") for row in side] for side in sides))
        for name in names
        if name not in KEYS
    ]


def targets_of(photos: Photos, fitted: np.ndarray, held_out: np.ndarray) -> list[Target]:
    """What directions are sought for, of the rows of fitted and held-out photos: marks, classes
    (the largest), columns."""
    found = []
    if photos.masks is not None and photos.masks_fitted is not None:
        sides = photos.masks_fitted[fitted].any((1, 2)), photos.masks[held_out].any((1, 2))
        found.append(Target("marked", "marked", *(torch.from_numpy(x).double() for x in sides)))
    classes = photos.fitted.classes
    labels = photos.fitted.labels[fitted], photos.held_out.labels[held_out]
    if len(classes) > 1:
        sizes = np.bincount(labels[0], minlength=len(classes))
        for label in sorted(np.argsort(-sizes, kind="stable")[:CLASSES]):
            yes = [torch.from_numpy(some == label).double() for some in labels]
            found.append(Target(classes[label], "class", *yes))
    for column in photos.columns:
        found += _column_targets(
            column.name,
            [column.fitted[i] for i in fitted],
            [column.held_out[i] for i in held_out],
        )
    return found


def _column_targets(name: str, fitted: list[str], held_out: list[str]) -> list[Target]:
    kinds = sorted({value for value in fitted if value})
    try:
        numbers = [
            torch.tensor([float(value or "nan") for value in some], dtype=torch.float64)
            for some in (fitted, held_out)
        ]
        if len(kinds) > 2:
            return [Target(name, "number", *numbers)]
    except ValueError:
        pass
    if not 2 <= len(kinds) <= CLASSES:
        return []
    return [
        Target(
            f"{name} = {kind}",
            "class",
            *(
                torch.tensor([float(v == kind) if v else float("nan") for v in some]).double()
                for some in (fitted, held_out)
            ),
        )
        for kind in (kinds[1:] if len(kinds) == 2 else kinds)
    ]
