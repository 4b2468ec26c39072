"""Which photos there are: a folder, or the built-in ones -> Listing.

Read as they lie in the world: class folders, train/ beside val/ or test/ in any of their usual
names, MVTec (train/good, test/<defect>), images/train beside images/val. A photo counts once,
however many links lead to it.
"""

import functools
import hashlib
import importlib.util
import os
import re
from collections import Counter
from collections.abc import Iterable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image

from softvq import images
from softvq.errors import UserError

SUFFIXES = {".jpg", ".jpeg", ".jfif", ".png", ".webp", ".bmp", ".tif", ".tiff", ".gif"}
SPLITS = ("train", "val", "all")
VAL_FRACTION = 0.1

# What a folder of each split is called, in any case and perhaps with a year (train2017).
SPLIT_FOLDERS = {
    "train": ("train", "training"),
    "val": ("val", "valid", "validation"),
    "test": ("test", "testing"),
}
# The one class that anomaly data sets train on; their defects are in test/ alone.
DEFECT_FREE = {"good", "normal", "ok"}
# What a folder holds that softvq wrote: one of these sets of names.
OURS = (
    {"recipe.yaml"},
    {"model_index.json"},
    {"config.json", "model.safetensors"},
    {"index.json", "tokens-00000.safetensors"},
    {"skipped.jsonl"},
    {"shards.json"},
    {"softvq.json"},
)

# The photographs inside the scikit-image wheel: no drawings, no text, no binary images, nothing
# that it would download, and only one of the two stereo views of the motorcycle. All are at least
# as wide as high, and at least 384 pixels wide.
BUILTIN = [
    "astronaut.png",
    "brick.png",
    "camera.png",
    "chelsea.png",
    "coffee.png",
    "coins.png",
    "grass.png",
    "gravel.png",
    "hubble_deep_field.jpg",
    "ihc.png",
    "moon.png",
    "motorcycle_left.png",
    "retina.jpg",
    "rocket.jpg",
]
BUILTIN_MIN_SIDE = 96
BUILTIN_CROPS = {"train": 150, "val": 15}  # per photo

MOST_NAMED = 8  # classes or endings in a summary


@dataclass(frozen=True)
class Found:
    """What lies in a folder as a whole, whichever split of it is asked for.

    counts:   split -> class ('' without classes) -> number of photos
    held_out: where the held-out photos come from
    unused:   folders left out because others are the splits
    ignored:  ending -> number of files that are no photos
    linked:   links to photos that are listed already
    ours:     folders left out because softvq wrote them
    """

    counts: dict[str, Counter[str]]
    held_out: str = ""
    unused: list[str] = field(default_factory=list)
    ignored: Counter[str] = field(default_factory=Counter)
    linked: int = 0
    ours: list[str] = field(default_factory=list)

    def summary(self) -> str:
        """One line on photos, split and classes; a second one if anything was left out."""
        train, val = self.counts["train"], self.counts["val"]
        both = train + val
        line = (
            f"{both.total():,} photos: {train.total():,} for training, "
            f"{val.total():,} held out ({self.held_out})"
        )
        if set(both) == {""}:
            line += "; no classes"
        else:
            line += f"; {len(both)} class{'es' if len(both) > 1 else ''}: {_listed(both)}"
            if set(both) != set(train):
                line += f" (training sees {', '.join(sorted(train))} alone)"
        left = [f"{folder}/" for folder in self.unused]
        left += [f"{folder}/ (written by softvq)" for folder in self.ours]
        if self.ignored:
            endings = Counter(dict(self.ignored.most_common()))
            left.append(f"files that are no photos ({_listed(endings, sort=False)})")
        if self.linked:
            left.append(f"links to photos that are listed already ({self.linked:,})")
        return line + (f"\nleft out: {'; '.join(left)}" if left else "")


def _listed(counts: Counter[str], sort: bool = True) -> str:
    names = sorted(counts) if sort else list(counts)
    more = f" and {len(names) - MOST_NAMED} more" if len(names) > MOST_NAMED else ""
    return ", ".join(f"{name} {counts[name]:,}" for name in names[:MOST_NAMED]) + more


@dataclass
class Listing:
    """Which photos there are. The lists run in parallel; the order is that of the names.

    ``labels`` int64 [N] index into ``classes``; without classes they are all 0 and ``classes`` is
    empty (unconditional). ``boxes`` (left, top, right, bottom) cut the built-in photos, and only
    those. ``found`` is about all splits.
    """

    root: Path
    paths: list[Path]
    names: list[str]
    labels: np.ndarray
    classes: list[str]
    boxes: list[tuple[int, int, int, int]] | None = None
    found: Found | None = None

    def read(self, i: int) -> Image.Image:
        """Decode photo ``i`` to RGB; raises images.BadImage."""
        if self.boxes is None:
            return images.load(self.paths[i])
        return _builtin_photo(self.paths[i]).crop(self.boxes[i])

    def stamps(self) -> list[Any]:
        """What tells these files from others of the same names."""
        found = []
        for path in self.paths:
            try:
                stat = path.stat()
                found.append((stat.st_size, stat.st_mtime_ns))
            except OSError:  # a broken link: skipped later, with its reason
                found.append((-1, -1))
        return found

    def place(self, i: int) -> str:
        """Where photo ``i`` lies, for messages."""
        return str(self.paths[i])

    def in_reading_order(self) -> np.ndarray:
        """All rows, int64 [N], in the order in which they are read fastest."""
        return np.arange(len(self.names))

    def summary(self) -> str:
        """What was found in the folder, in one line or two: photos, split, classes, left out."""
        return self.found.summary() if self.found else f"{len(self.names):,} photos"


def split_of(name: str) -> str | None:
    """The split, train, val or test, that a photo's first folder is called after; or None."""
    folder, slash, _ = name.partition("/")
    return _split_called(folder) if slash else None


def _split_called(folder: str) -> str | None:
    word = re.sub(r"\d{4}$", "", folder.lower())
    return next((split for split, words in SPLIT_FOLDERS.items() if word in words), None)


def find_files(source: str | Path, split: str = "train") -> Listing:
    """List the photos of a folder, or of ``"builtin"``, for ``split`` train, val or all.

    A class is a first-level subfolder; photos below it count at any depth. Without subfolders, or
    with the one folder ``images``, there are no classes.

    If the folder has ``train/`` (or training) beside ``val/`` (valid, validation) or ``test/``
    (testing), in any case, those are the splits, and anything beside them is left out: with all
    three, val is held out, and test is kept for a last look that is the user's own. They may also
    lie in ``images/``. If train/ holds one class, called good, normal or ok, the held-out part may
    have classes of defects beside it (the layout of MVTec), which training then never sees.
    Without such folders about a tenth of each class, and at least one photo of every class of two
    or more, is held out by a hash of the relative path: deterministic, and the same on every
    machine.

    Links are followed; a photo that several lead to is listed once, where it lies if that is in
    the folder. Hidden files and folders, files of other suffixes and folders that softvq wrote are
    left out; ``Listing.summary`` says so.

    Raises UserError if the source is missing, not a folder, unreadable or without photos; if
    photos lie beside class folders; if the held-out part has a class that ``train/`` lacks, but
    for defects; for a train/ alone, or two folders of one split.
    """
    if source == "builtin":
        return _find_builtin(split)
    root = Path(source).expanduser()
    if root.is_file():
        raise UserError(f"{root}: is a file; give the folder that holds the photos")
    if not root.is_dir():
        raise UserError(f"{root}: no such folder; give a folder of photos, or 'builtin'")

    folders = _folders(root)
    splits = _split_folders(root, folders)
    if not splits and "images" in folders:
        inner = _folders(root / "images")
        if splits := _split_folders(root / "images", inner):
            root, folders = root / "images", inner
    walked = _Walk(root, splits.values() if splits else None)
    parts = _parts(root, splits, walked)
    classes, label = _classify(root, splits, parts)

    chosen = sorted(parts["train"] + parts["val"]) if split == "all" else parts[split]
    if not chosen:
        raise UserError(f"{root}: no photo left for validation; it takes two photos or more")
    number = {name: i for i, name in enumerate(classes)}
    labels = np.array([number[label(name)] if classes else 0 for name in chosen], np.int64)
    found = Found(
        {part: Counter(label(name) for name in names) for part, names in parts.items()},
        f"{splits['val']}/" if splits else "drawn by name",
        [name for name in folders if name not in splits.values()] if splits else [],
        walked.ignored,
        walked.linked,
        walked.ours,
    )
    return Listing(root, [root / name for name in chosen], chosen, labels, classes, None, found)


def _folders(root: Path) -> list[str]:
    try:
        return sorted(p.name for p in root.iterdir() if p.is_dir() and p.name[0] != ".")
    except OSError as error:
        raise UserError(f"{root}: cannot be read ({error.strerror})") from None


def _split_folders(root: Path, folders: list[str]) -> dict[str, str]:
    """The folders that train and val photos lie in, {} if there are no two such."""
    called: dict[str, list[str]] = {split: [] for split in SPLIT_FOLDERS}
    for folder in folders:
        if split := _split_called(folder):
            called[split].append(folder)
    held_out = called["val"] or called["test"]
    if not (called["train"] and held_out):
        return {}
    for same in (called["train"], held_out):
        if len(same) > 1:
            raise UserError(f"{root}: has both {same[0]}/ and {same[1]}/; make one folder of them")
    return {"train": called["train"][0], "val": held_out[0]}


def _parts(root: Path, splits: dict[str, str], walked: "_Walk") -> dict[str, list[str]]:
    """The names of the photos of train and val."""
    if splits:
        parts = {
            part: [name for name in walked.names if name.startswith(folder + "/")]
            for part, folder in splits.items()
        }
        for part, names in parts.items():
            if not names:
                raise _no_photos(root / splits[part], walked)
        return parts
    if not walked.names:
        raise _no_photos(root, walked)
    tops = sorted({name.partition("/")[0] for name in walked.names if "/" in name})
    called = {_split_called(top) for top in tops}
    if tops and None not in called and all("/" in name for name in walked.names):
        missing = "val" if called == {"train"} else "train"
        raise UserError(f"{root}: has {tops[0]}/ but no {missing}/; add it, or give that subfolder")
    held_out = hold_out(walked.names)
    return {
        "train": [name for name in walked.names if name not in held_out],
        "val": sorted(held_out),
    }


def _no_photos(root: Path, walked: "_Walk") -> UserError:
    kinds = ", ".join(sorted(suffix[1:] for suffix in SUFFIXES))
    there = f", but {_listed(walked.ignored)}" if walked.ignored else ""
    return UserError(f"{root}: no photos there ({kinds}){there}; give the folder that holds them")


class _Walk:
    """The photos below ``root``, or below some folders of it alone.

    names: sorted relative paths, with '/'; ignored, linked, ours: as in :class:`Found`
    """

    def __init__(self, root: Path, below: Iterable[str] | None = None):
        self.root = root
        self.ignored: Counter[str] = Counter()
        self.linked = 0
        self.ours: list[str] = []
        self.visited: set[str] = set()  # real paths of folders
        self.listed: dict[str, str] = {}  # real path of a photo -> its name
        self.photo_links: list[str] = []
        # What lies in the folder itself comes first, so that a photo is named after its own place.
        pending = [str(root)] if below is None else [str(root / name) for name in below]
        while pending:
            pending = sorted(link for start in pending for link in self._tree(start))
        for path in sorted(self.photo_links):
            real = os.path.realpath(path)
            if real in self.listed:
                self.linked += 1
            else:
                self.listed[real] = self._name(path)
        self.names = sorted(self.listed.values())

    def _name(self, path: str) -> str:
        return Path(path).relative_to(self.root).as_posix()

    def _tree(self, start: str) -> list[str]:
        """Take in the real folders below start. Returns the links to folders found there."""

        def refuse(error: OSError) -> None:
            raise UserError(f"{error.filename}: cannot be read ({error.strerror})")

        links = []
        for here, folders, files in os.walk(start, onerror=refuse):
            real = os.path.realpath(here)
            if real in self.visited or (here != str(self.root) and _is_ours(folders, files)):
                if real not in self.visited:
                    self.ours.append(self._name(here))
                    self.visited.add(real)
                folders.clear()
                continue
            self.visited.add(real)
            folders[:] = [folder for folder in folders if folder[0] != "."]
            for folder in folders:
                path = os.path.join(here, folder)
                # A link to a folder above this one would bring in all that lies beside it.
                above = os.path.join(os.path.realpath(path), "")
                if os.path.islink(path) and not os.path.join(real, "").startswith(above):
                    links.append(path)
            for file in files:
                self._file(here, real, file)
        return links

    def _file(self, here: str, real: str, file: str) -> None:
        if file[0] == "." or file.lower() in ("thumbs.db", "desktop.ini"):
            return
        suffix = os.path.splitext(file)[1].lower()
        path = os.path.join(here, file)
        if suffix not in SUFFIXES:
            self.ignored[suffix or "without ending"] += 1
        elif os.path.islink(path):
            self.photo_links.append(path)
        else:
            self.listed[os.path.join(real, file)] = self._name(path)


def _is_ours(folders: list[str], files: list[str]) -> bool:
    names = {*folders, *files}
    return any(mark <= names for mark in OURS)


def _classify(
    root: Path, splits: dict[str, str], parts: dict[str, list[str]]
) -> tuple[list[str], "functools.partial[str]"]:
    """The sorted classes, and what tells the class of a name ('' without classes)."""
    depth = 1 if splits else 0
    if not splits:
        classes = _classes(root, parts["train"] + parts["val"], depth)
    else:
        classes = _classes(root / splits["train"], parts["train"], depth)
        held_out = _classes(root / splits["val"], parts["val"], depth)
        unknown = sorted(set(held_out) - set(classes))
        if unknown and [name.lower() in DEFECT_FREE for name in classes] == [True]:
            classes = sorted({*classes, *held_out})
        elif unknown or (classes and not held_out):
            what = f"class {', '.join(unknown)}" if unknown else "photos outside class folders"
            raise UserError(
                f"{root / splits['val']}: {what}, unknown in {splits['train']}/; "
                "use the same class folders"
            )
    return classes, functools.partial(_class_of, bool(classes), depth)


def _class_of(there_are: bool, depth: int, name: str) -> str:
    return name.split("/")[depth] if there_are else ""


def _classes(root: Path, names: list[str], depth: int) -> list[str]:
    """The sorted folders at ``depth`` of the names, or none if all lie above."""
    below = [name.split("/")[depth:] for name in names]
    classes = sorted({parts[0] for parts in below if len(parts) > 1})
    loose = [parts[0] for parts in below if len(parts) == 1]
    if classes and loose:
        raise UserError(
            f"{root}: {len(loose)} photos ({loose[0]}, ...) lie beside the class folders "
            f"({classes[0]}, ...); move them into a class folder, or all photos into one folder"
        )
    return [] if classes == ["images"] else classes


def hold_out(names: list[str]) -> set[str]:
    """The photos kept for validation: of every class those with the smallest hashes."""
    by_class: dict[str, list[str]] = {}
    for name in names:
        by_class.setdefault(name.split("/")[0] if "/" in name else "", []).append(name)
    chosen: set[str] = set()
    for members in by_class.values():
        members.sort(key=lambda name: hashlib.sha256(os.fsencode(name)).digest())
        if len(members) > 1:
            chosen.update(members[: max(1, round(len(members) * VAL_FRACTION))])
    return chosen


@functools.lru_cache(maxsize=len(BUILTIN))
def _builtin_photo(path: Path) -> Image.Image:
    return images.load(path)


def _find_builtin(split: str) -> Listing:
    """Square random crops of scikit-image's bundled photos; class = photo.

    The right-hand quarter of every photo is held out for validation, so no pixel is in both
    splits. Both draw their crops from the same range of sizes: from 96 pixels to the width of the
    held-out quarter.
    """
    spec = importlib.util.find_spec("skimage")
    if spec is None or spec.origin is None:
        raise UserError("the built-in photos need scikit-image; run: pip install scikit-image")
    root = Path(spec.origin).parent / "data"
    missing = [file for file in BUILTIN if not (root / file).is_file()]
    if missing:
        raise UserError(
            f"{root}: lacks {', '.join(missing)}; run: pip install scikit-image==0.26.0"
        )

    sizes = [_builtin_photo(root / file).size for file in BUILTIN]
    classes = [Path(file).stem for file in BUILTIN]
    names, paths, labels, boxes = [], [], [], []
    for part in ("train", "val") if split == "all" else (split,):
        rng = np.random.default_rng((0, part == "val"))
        for i in range(BUILTIN_CROPS[part]):
            for label, (width, height) in enumerate(sizes):
                strip = width // 4
                left, right = (width - strip, width) if part == "val" else (0, width - strip)
                low, high = np.log([BUILTIN_MIN_SIDE, strip])
                side = round(float(np.exp(rng.uniform(low, high))))
                x = int(rng.integers(left, right - side + 1))
                y = int(rng.integers(0, height - side + 1))
                names.append(f"{part}/{classes[label]}/{i:03d}")
                paths.append(root / BUILTIN[label])
                labels.append(label)
                boxes.append((x, y, x + side, y + side))
    counts = {part: Counter(dict.fromkeys(classes, n)) for part, n in BUILTIN_CROPS.items()}
    found = Found(counts, "the right-hand quarter of each picture")
    return Listing(root, paths, names, np.array(labels, np.int64), classes, boxes, found)
