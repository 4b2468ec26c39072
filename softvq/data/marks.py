"""What is marked in photos, a defect or whatever else matters: masks or boxes -> Marks.

Masks are pictures. Boxes come as a CSV, as COCO's JSON, or as a folder with a file for each photo:
YOLO's .txt or Pascal VOC's .xml. All are of the upright photo.
"""

import json
import math
import warnings
from collections import defaultdict
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path, PurePosixPath
from typing import Any, NamedTuple
from xml.etree import ElementTree

import numpy as np
from PIL import Image

from softvq import images
from softvq.data.find import find_photos
from softvq.data.photos import split_of
from softvq.data.shards import is_sharded
from softvq.data.table import read_rows
from softvq.errors import SoftVQWarning, UserError

SIDES = ("x1", "y1", "x2", "y2")
MVTEC_MASKS = "ground_truth"
COVERED = 0.25  # of a pixel, from which it is inside a mask
PROPORTIONS = 0.01  # by which a mask's may differ from its photo's
# Folders that annotation tools put between a split and a photo, on one side or the other.
BETWEEN = {"annotations", "images", "jpegimages", "labels"}


class Box(NamedTuple):
    """A marked rectangle in pixels of the upright photo; right and bottom are outside."""

    left: float
    top: float
    right: float
    bottom: float
    label: str = ""


@dataclass(frozen=True)
class Marks:
    """What is marked in one photo: a mask, or boxes, or nothing.

    photo: its name, as in ``Store.names``
    size:  (height, width) of the upright photo file; None if nothing is marked, or no file is there
    mask:  the file of a picture of the photo's proportions, not black where it is marked
    boxes: each has something of the photo in it
    """

    photo: str
    size: tuple[int, int] | None = None
    mask: Path | None = None
    boxes: tuple[Box, ...] = ()

    def __bool__(self) -> bool:
        return self.mask is not None or bool(self.boxes)


def mvtec_masks(source: str | Path) -> Path | None:
    """The folder of masks beside train/ and test/, where a data set laid out as MVTec has one."""
    folder = Path(source).expanduser() / MVTEC_MASKS
    return folder if folder.is_dir() else None


def find_marks(
    names: Sequence[str],
    source: str | Path | None,
    masks: str | Path | None = None,
    boxes: str | Path | None = None,
) -> list[Marks]:
    """The marks of each of the photos ``names`` in the folder ``source``, in their order.

    source: None for photos without files of their own, which only masks can be of
    masks: a folder of pictures placed as the photos: train/bad/1.jpg has train/bad/1.png, or
           train/bad/1_mask.png. For photos of test/, that folder may be missing, as in MVTec.
    boxes: one of these
           - a CSV with the columns x1, y1, x2, y2 and those by which ``read_rows`` finds a photo
           - COCO's .json: bbox = x, y, width, height of an annotation; file_name finds the photo
           - a folder of YOLO's .txt (class, middle and size of a box as shares of the photo, or a
             polygon), Pascal VOC's .xml (pixels from 1, the last one inside) or COCO's .json, each
             named as its photo; names of classes are in classes.txt
    Without either, the masks of an MVTec folder are taken.

    Boxes without a piece of the photo in them are left out with a SoftVQWarning, as are those of
    photos that are not there. Raises UserError for both, for nothing there, for a damaged file, one
    that fits no photo or several, and for boxes of a photo of another size.
    """
    if masks is not None and boxes is not None:
        raise UserError("regions come from masks or from boxes; give one of the two")
    if boxes is not None:
        if source is None:
            raise UserError(f"{boxes}: boxes need a folder of photos; give masks")
        return _find_boxes(names, source, Path(boxes).expanduser())
    folder = Path(masks).expanduser() if masks is not None else source and mvtec_masks(source)
    if not folder:
        return [Marks(name) for name in names]
    if not folder.is_dir():
        raise UserError(f"{folder}: no such folder; give the folder that holds the masks")
    root = None if source is None else Path(source).expanduser()
    return [_mask_of(name, root, folder) for name in names]


def _mask_of(name: str, root: Path | None, folder: Path) -> Marks:
    places = [PurePosixPath(name)]
    if split_of(name) == "test":
        places.append(PurePosixPath(*places[0].parts[1:]))
    for place in places:
        for called in (f"{place.stem}.png", f"{place.stem}_mask.png"):
            path = folder / place.with_name(called)
            if path.is_file():
                return Marks(name, _file_size(root / name) if root else None, path)
    return Marks(name)


def _file_size(path: Path) -> tuple[int, int] | None:
    """(height, width) of an upright photo; None without such a file: a built-in photo has none."""
    try:
        width, height = images.upright_size(path)
    except FileNotFoundError:
        return None
    except OSError as error:
        raise UserError(f"{path}: cannot be read ({error.strerror or error})") from None
    return height, width


def read_masks(marks: Sequence[Marks], size: tuple[int, int], fit: str = "crop") -> np.ndarray:
    """The masks of photos, bool [N, height, width], fitted as the photos are by ``images.fit``.

    A pixel is inside where at least a quarter of it is, of a mask or of a box; a photo without
    either has an empty one.
    Raises UserError for a damaged mask, and for one whose proportions are not its photo's.
    """
    masks = np.zeros((len(marks), *size), dtype=bool)
    for mask, one in zip(masks, marks, strict=True):
        if not one:
            continue
        inside = _painted(one.boxes, one.size) if one.mask is None else _loaded(one.mask, one.size)
        picture = Image.fromarray(255 * inside.astype(np.uint8)).convert("RGB")
        mask[:] = np.asarray(images.fit(picture, size, fit))[..., 0] >= 255 * COVERED
    return masks


def _loaded(path: Path, photo: tuple[int, int] | None) -> np.ndarray:
    try:
        inside = images.load_mask(path)
    except images.BadImage as error:
        raise UserError(str(error)) from None
    if photo is not None:
        _check_proportions(path, inside.shape, photo)
    return inside


def _painted(boxes: Sequence[Box], size: tuple[int, int] | None) -> np.ndarray:
    """A mask of boxes, in the photo file's own pixels: those that a box touches."""
    inside = np.zeros(size or (1, 1), bool)
    for box in boxes:
        top, left = max(0, math.floor(box.top)), max(0, math.floor(box.left))
        inside[top : math.ceil(box.bottom), left : math.ceil(box.right)] = True
    return inside


def _check_proportions(path: Path, mask: tuple[int, ...], photo: tuple[int, int]) -> None:
    expected = photo[1] * mask[0] / photo[0]  # its width, at the photo's proportions
    if abs(mask[1] - expected) > max(1.0, PROPORTIONS * expected, mask[0] / photo[0]):
        raise UserError(
            f"{path}: {mask[1]} x {mask[0]} pixels (width x height), and its photo "
            f"{photo[1]} x {photo[0]}; a mask has the proportions of its photo"
        )


# ---- boxes ----


class _Photos:
    """The photos of a folder, found by what an annotation calls them."""

    def __init__(self, source: str | Path, annotations: Path):
        if is_sharded(source):
            raise UserError(f"{source}: shards; boxes are of photos in a folder: give that")
        listing = find_photos(source, "all")
        self.names, self.classes, self.annotations = listing.names, listing.classes, annotations
        self.paths = dict(zip(listing.names, listing.paths, strict=True))
        self.sizes: dict[str, tuple[int, int]] = {}
        self.by_stem: dict[str, list[str]] = defaultdict(list)
        for name in listing.names:
            self.by_stem[PurePosixPath(name).stem].append(name)
        self.strangers = 0  # annotations of no photo here

    def size(self, name: str) -> tuple[int, int]:
        """(height, width) of the upright photo."""
        if name not in self.sizes:
            size = _file_size(self.paths[name])
            if size is None:
                raise UserError(f"{self.paths[name]}: no such file")
            self.sizes[name] = size
        return self.sizes[name]

    def find(self, called: str, split: str | None = None) -> str | None:
        """The photo that is meant, None if it is not here. ``split``: of the annotation's file.

        Raises UserError if it may be several.
        """
        called = called.replace("\\", "/")
        stem = PurePosixPath(called).stem
        want = _road(called)
        # An ending is told from a dot in a name by what is there: shot.1 may be shot.1.png.
        near = [
            name
            for form in sorted({stem, PurePosixPath(called).name})
            for name in self.by_stem.get(form, [])
        ]
        fits = [
            name
            for name in near
            if split_of(name) in (None, split or split_of(name)) and _agree(_road(name), want)
        ]
        nearer: list[Callable[[str], bool]] = [
            lambda name: PurePosixPath(name).name == PurePosixPath(called).name,
            lambda name: len(_road(name)) == len(want),
        ]
        for closer in nearer:
            if len(fits) > 1:
                fits = [name for name in fits if closer(name)] or fits
        if len(fits) > 1:
            raise UserError(
                f"{self.annotations}: {called} may be {fits[0]} or {fits[1]}; say which by a path "
                "below the photos' folder"
            )
        self.strangers += not fits
        return fits[0] if fits else None


def _road(name: str) -> list[str]:
    """The folders that lead to a photo, those aside that only tell photos from annotations."""
    return [part for part in PurePosixPath(name).parts[:-1] if part.lower() not in BETWEEN]


def _agree(a: list[str], b: list[str]) -> bool:
    """Whether one is the end of the other."""
    shorter = min(len(a), len(b))
    return shorter == 0 or a[-shorter:] == b[-shorter:]


def _find_boxes(names: Sequence[str], source: str | Path, path: Path) -> list[Marks]:
    photos = _Photos(source, path)
    found: dict[str, list[Box]] = defaultdict(list)
    outside: list[str] = []
    for name, box in _reader(path)(path, photos):
        height, width = photos.size(name)
        if min(box[2], width) > max(box[0], 0) and min(box[3], height) > max(box[1], 0):
            found[name].append(box)
        else:
            where = ", ".join(f"{x:g}" for x in box[:4])
            outside.append(f"{where} in {name}, {width} x {height}")
    if photos.strangers and not (found or outside):
        raise UserError(f"{path}: fits no photo such as {photos.names[0]}; see how it names them")
    if outside:
        _warn(f"{path}: boxes outside of their photo, left out: {len(outside)} ({outside[0]})")
    if photos.strangers:
        _warn(f"{path}: annotations of no photo in {source}, left out: {photos.strangers}")
    return [
        Marks(name, photos.size(name), None, tuple(found[name])) if found[name] else Marks(name)
        for name in names
    ]


def _warn(text: str) -> None:
    warnings.warn(text, SoftVQWarning, stacklevel=4)


_Reader = Callable[[Path, _Photos], Iterator[tuple[str, Box]]]


def _reader(path: Path) -> _Reader:
    if path.is_dir():
        return _read_folder
    known: dict[str, _Reader] = {".json": _read_coco, ".xml": _read_voc, ".txt": _read_yolo}
    return known.get(path.suffix.lower(), _read_table)


def _read_folder(folder: Path, photos: _Photos) -> Iterator[tuple[str, Box]]:
    files = [
        path
        for path in sorted(folder.rglob("*"))
        if path.suffix.lower() in (".txt", ".xml", ".json") and path.name != "classes.txt"
    ]
    if not files:
        raise UserError(f"{folder}: no .txt (YOLO), .xml (Pascal VOC) or .json (COCO) there")
    for path in files:
        yield from _reader(path)(path, photos)


def _damaged(path: Path, kind: str, error: object) -> UserError:
    return UserError(f"{path}: not {kind} ({error})")


def _box(path: Path, sides: Sequence[Any], label: str = "") -> Box:
    left, top, right, bottom = (float(side) for side in sides)
    if not all(map(math.isfinite, (left, top, right, bottom))):
        raise UserError(f"{path}: a side of a box is not finite: {left}, {top}, {right}, {bottom}")
    return Box(left, top, right, bottom, label)


def _read_table(path: Path, photos: _Photos) -> Iterator[tuple[str, Box]]:
    splits = all(split_of(name) for name in photos.names)
    columns, rows = read_rows(path, photos.names, splits, bool(photos.classes))
    missing = [column for column in SIDES if column not in columns]
    if missing:
        raise UserError(f"{path}: lacks the column {', '.join(missing)}")
    for name, some in zip(photos.names, rows, strict=True):
        for row in some:
            where = ",".join(row.values())
            try:
                sides = [float(row[side]) for side in SIDES]
            except ValueError:
                raise UserError(f"{path}: a side is no number in the row {where}") from None
            if not (sides[0] < sides[2] and sides[1] < sides[3]):
                raise UserError(f"{path}: x1 < x2 and y1 < y2 must hold in the row {where}")
            yield name, _box(path, sides, row.get("label") or row.get("type", ""))


def _read_coco(path: Path, photos: _Photos) -> Iterator[tuple[str, Box]]:
    words = path.stem.lower().replace("-", "_").split("_")  # instances_val2017
    split = next(filter(None, (split_of(f"{word}/") for word in words)), None)
    try:
        content = json.loads(path.read_text(encoding="utf-8"))
        pictures = {picture["id"]: picture for picture in content["images"]}
        labels = {item["id"]: str(item["name"]) for item in content.get("categories", [])}
        found = {key: photos.find(picture["file_name"], split) for key, picture in pictures.items()}
        for item in content["annotations"]:
            name = found[item["image_id"]]
            if name is None:
                continue
            picture = pictures[item["image_id"]]
            _check_size(path, name, photos, picture.get("width"), picture.get("height"))
            x, y, width, height = (float(side) for side in item["bbox"])
            label = labels.get(item.get("category_id"), "")
            yield name, _box(path, (x, y, x + width, y + height), label)
    except OSError as error:
        raise UserError(f"{path}: cannot be read ({error.strerror})") from None
    except UserError:
        raise
    except (KeyError, TypeError, ValueError, AttributeError, RecursionError) as error:
        text = f"lacks {error}" if isinstance(error, KeyError) else error
        raise _damaged(path, "COCO's JSON", text) from None


def _check_size(path: Path, name: str, photos: _Photos, width: Any, height: Any) -> None:
    there = photos.size(name)
    if width and height and (int(height), int(width)) != there:
        raise UserError(
            f"{path}: boxes for {name} at {width} x {height} pixels, but the photo has "
            f"{there[1]} x {there[0]}; give boxes of these photos"
        )


def _read_yolo(path: Path, photos: _Photos) -> Iterator[tuple[str, Box]]:
    lines = [line.split() for line in _text(path).splitlines() if line.strip()]
    name = photos.find(_relative(path, photos)) if lines else None
    if name is None:
        return
    labels = path.parent / "classes.txt"
    called = _text(labels).split("\n") if labels.is_file() else []
    height, width = photos.size(name)
    for number, *shares in lines:
        try:
            values = [float(share) for share in shares]
            if len(values) in (4, 5):  # the fifth is a detector's confidence
                x, y, w, h = values[:4]
                sides = (x - w / 2, y - h / 2, x + w / 2, y + h / 2)
            elif len(values) >= 6 and len(values) % 2 == 0:
                xs, ys = values[::2], values[1::2]
                sides = (min(xs), min(ys), max(xs), max(ys))
            else:
                raise ValueError(f"{len(values)} numbers")
            label = called[int(number)].strip() if 0 <= int(number) < len(called) else number
        except ValueError as error:
            raise _damaged(path, "YOLO's 'class x y width height'", error) from None
        scaled = [side * scale for side, scale in zip(sides, (width, height) * 2, strict=True)]
        yield name, _box(path, scaled, label)


def _read_voc(path: Path, photos: _Photos) -> Iterator[tuple[str, Box]]:
    try:
        tree = ElementTree.fromstring(_text(path))
        if tree.tag != "annotation":
            raise ValueError(f"<{tree.tag}>, not <annotation>")
        objects = tree.findall("object")
        name = photos.find(_relative(path, photos)) if objects else None
        if name is None:
            return
        sizes = [int(tree.findtext(f"size/{side}") or 0) for side in ("width", "height")]
        _check_size(path, name, photos, *sizes)
        for item in objects:
            first = [float(item.findtext(f"bndbox/{side}") or "") for side in ("xmin", "ymin")]
            last = [float(item.findtext(f"bndbox/{side}") or "") for side in ("xmax", "ymax")]
            sides = (first[0] - 1, first[1] - 1, *last)
            yield name, _box(path, sides, item.findtext("name") or "")
    except UserError:
        raise
    except (ElementTree.ParseError, ValueError) as error:
        raise _damaged(path, "Pascal VOC's XML", error) from None


def _relative(path: Path, photos: _Photos) -> str:
    """What a file of one photo's boxes calls the photo."""
    below = path.relative_to(photos.annotations) if path != photos.annotations else Path(path.name)
    return below.with_suffix("").as_posix()


def _text(path: Path) -> str:
    try:
        return path.read_text(encoding="utf-8-sig")
    except OSError as error:
        raise UserError(f"{path}: cannot be read ({error.strerror})") from None
    except UnicodeDecodeError:
        raise UserError(f"{path}: not UTF-8 text") from None
