"""Folder or built-in photos -> batches.

find_photos -> Listing -> open_store -> Store (every photo decoded once, uint8, on disk)
  -> Crops + Positions (training, resumable from the images seen) | fixed_batches (evaluation)
"""

import contextlib
import fcntl
import functools
import hashlib
import importlib.util
import json
import math
import os
import shutil
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from PIL import Image
from tqdm import tqdm

from softvq import images
from softvq.errors import UserError
from softvq.io import write_atomically

SUFFIXES = {".jpg", ".jpeg", ".png", ".webp", ".bmp", ".tif", ".tiff", ".gif"}
SPLITS = ("train", "val", "all")
VAL_FRACTION = 0.1

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

STORE_VERSION = 1  # raise it when the stored pixels would come out differently


@dataclass
class Listing:
    """Which photos there are. The lists run in parallel; the order is that of the names.

    ``labels`` int64 [N] index into ``classes``; without classes they are all 0 and ``classes`` is
    empty (unconditional). ``boxes`` (left, top, right, bottom) cut the built-in photos, and only
    those.
    """

    root: Path
    paths: list[Path]
    names: list[str]
    labels: np.ndarray
    classes: list[str]
    boxes: list[tuple[int, int, int, int]] | None = None

    def read(self, i: int) -> Image.Image:
        """Decode photo ``i`` to RGB; raises images.BadImage."""
        if self.boxes is None:
            return images.load(self.paths[i])
        return _builtin_photo(self.paths[i]).crop(self.boxes[i])


def find_photos(source: str | Path, split: str = "train") -> Listing:
    """List the photos of a folder, or of ``"builtin"``, for ``split`` train, val or all.

    A class is a first-level subfolder; photos below it count at any depth. Without subfolders
    there are no classes. If the folder has both ``train/`` and ``val/``, those are the splits (and
    anything beside them is ignored). Otherwise about a tenth of each class, and at least one photo
    of every class of two or more, is held out by a hash of the relative path: deterministic, and
    the same on every machine. Hidden files and folders, and files of other suffixes, are ignored.

    Raises UserError if the source is missing, not a folder, unreadable or without photos; if
    photos lie beside class folders; if ``val/`` has a class that ``train/`` lacks.
    """
    if split not in SPLITS:
        raise UserError(f"unknown split '{split}'; known: {', '.join(SPLITS)}")
    if source == "builtin":
        return _find_builtin(split)
    root = Path(source).expanduser()
    if root.is_file():
        raise UserError(f"{root}: is a file; give the folder that holds the photos")
    if not root.is_dir():
        raise UserError(f"{root}: no such folder; give a folder of photos, or 'builtin'")

    try:
        folders = sorted(p.name for p in root.iterdir() if p.is_dir() and p.name[0] != ".")
    except OSError as error:
        raise UserError(f"{root}: cannot be read ({error.strerror})") from None
    if folders in (["train"], ["val"]):
        other = "val" if folders == ["train"] else "train"
        raise UserError(
            f"{root}: has {folders[0]}/ but no {other}/; add it, or give that subfolder"
        )
    if {"train", "val"} <= set(folders):
        train, val = _walk(root / "train"), _walk(root / "val")
        classes = _classes(root / "train", train)
        unknown = sorted(set(_classes(root / "val", val)) - set(classes))
        if unknown or (classes and any("/" not in name for name in val)):
            what = f"class {', '.join(unknown)}" if unknown else "photos outside class folders"
            raise UserError(
                f"{root / 'val'}: {what}, unknown in train/; use the same class folders"
            )
        parts = {"train": [f"train/{n}" for n in train], "val": [f"val/{n}" for n in val]}
        depth = 1
    else:
        names = _walk(root)
        classes = _classes(root, names)
        held_out = _hold_out(names)
        parts = {"train": [n for n in names if n not in held_out], "val": sorted(held_out)}
        depth = 0

    chosen = sorted(parts["train"] + parts["val"]) if split == "all" else parts[split]
    if not chosen:
        raise UserError(f"{root}: no photo left for validation; it takes two photos or more")
    label = {name: i for i, name in enumerate(classes)}
    labels = [label[name.split("/")[depth]] if classes else 0 for name in chosen]
    paths = [root / name for name in chosen]
    return Listing(root, paths, chosen, np.array(labels, np.int64), classes)


def _walk(root: Path) -> list[str]:
    """Sorted relative paths, with '/', of the photos below root. Links to folders are followed."""

    def refuse(error: OSError) -> None:
        raise UserError(f"{error.filename}: cannot be read ({error.strerror})")

    names = []
    for here, folders, files in os.walk(root, followlinks=True, onerror=refuse):
        above = os.path.join(os.path.realpath(here), "")
        # A link to a folder above this one would go round for ever.
        folders[:] = [
            folder
            for folder in folders
            if folder[0] != "."
            and not above.startswith(os.path.join(os.path.realpath(os.path.join(here, folder)), ""))
        ]
        for file in files:
            if file[0] != "." and os.path.splitext(file)[1].lower() in SUFFIXES:
                names.append(Path(here, file).relative_to(root).as_posix())
    if not names:
        kinds = ", ".join(sorted(suffix[1:] for suffix in SUFFIXES))
        raise UserError(f"{root}: no photos there ({kinds}); give the folder that holds them")
    return sorted(names)


def _classes(root: Path, names: list[str]) -> list[str]:
    """The sorted first-level subfolders of the names, or none if all lie at the top."""
    classes = sorted({name.split("/")[0] for name in names if "/" in name})
    loose = [name for name in names if "/" not in name]
    if classes and loose:
        raise UserError(
            f"{root}: {len(loose)} photos ({loose[0]}, ...) lie beside the class folders "
            f"({classes[0]}, ...); move them into a class folder, or all photos into one folder"
        )
    return classes


def _hold_out(names: list[str]) -> set[str]:
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
    return Listing(root, paths, names, np.array(labels, np.int64), classes, boxes)


@dataclass
class Store:
    """Decoded photos on disk.

    ``images`` is a read-only uint8 memmap [N, ceil(H * margin), ceil(W * margin), 3] for
    ``size`` = (H, W); ``labels`` int64 [N]; ``names`` the relative paths; ``skipped`` the damaged
    photos left out, as {"path", "reason"}; ``fingerprint`` changes when the photos do.
    """

    images: np.ndarray
    labels: np.ndarray
    names: list[str]
    classes: list[str]
    skipped: list[dict[str, str]]
    size: tuple[int, int]
    margin: float
    fingerprint: str

    def __len__(self) -> int:
        return len(self.names)


def open_store(
    source: str | Path,
    split: str,
    size: tuple[int, int],
    cache: str | Path,
    margin: float = 1.25,
    fit: str = "crop",
    progress: bool = True,
) -> Store:
    """Decode every photo of ``source`` once into a .npy file below ``cache``, and open that.

    The photos are stored ``margin`` times larger than ``size`` = (H, W), which leaves room for
    random crops; evaluation takes margin 1, and so a single resampling. The file is reused as long
    as the photos (names, sizes, modification times) and the arguments are the same. Damaged photos
    are left out and listed, one JSON object per line, in ``cache/skipped.jsonl``, which covers all
    stores in that cache.

    Raises UserError as ``find_photos`` does, if no photo can be decoded, if ``cache`` cannot be
    written or is too small, and for a margin below 1.
    """
    if margin < 1:
        raise UserError(f"margin must be 1 or more, not {margin}")
    cache = Path(cache)
    listing = find_photos(source, split)
    kind = [str(listing.root.resolve()), split, *size, margin, fit]
    stem = f"{split}-{size[0]}x{size[1]}-{_digest(kind)[:8]}"
    pixels, index = cache / f"{stem}.npy", cache / f"{stem}.json"
    fingerprint = _fingerprint(listing, kind)

    meta = _matching(index, pixels, fingerprint)
    if meta is None:
        shape = (math.ceil(size[0] * margin), math.ceil(size[1] * margin))
        try:
            with _locked(cache):  # a second process waits, and finds the finished store
                meta = _matching(index, pixels, fingerprint)
                if meta is None:
                    meta = _build(listing, shape, fit, pixels, index, fingerprint, progress)
                    _write_skipped(cache)
        except OSError as error:
            needed = len(listing.names) * math.prod(shape) * 3
            raise UserError(
                f"{cache}: cannot write the decoded photos ({error.strerror or error}); they take "
                f"{needed / 1e6:.0f} MB: free some space, or give another folder for the cache"
            ) from None
    return Store(
        images=np.load(pixels, mmap_mode="r"),
        labels=np.array(meta["labels"], np.int64),
        names=meta["names"],
        classes=meta["classes"],
        skipped=meta["skipped"],
        size=(size[0], size[1]),
        margin=margin,
        fingerprint=fingerprint,
    )


def _build(
    listing: Listing,
    shape: tuple[int, int],
    fit: str,
    pixels: Path,
    index: Path,
    fingerprint: str,
    progress: bool,
) -> dict:
    """Decode the listing into ``pixels`` and describe it in ``index``; returns the description."""
    count = len(listing.names)
    needed = count * math.prod(shape) * 3
    if shutil.disk_usage(pixels.parent).free < needed:
        raise OSError("no space left on the disk")  # now, rather than after hours of decoding

    def decode(i: int) -> bytes | images.BadImage:
        try:
            return images.fit(listing.read(i), shape, fit).tobytes()
        except images.BadImage as bad:
            return bad

    kept: list[int] = []
    skipped: list[dict[str, str]] = []
    partial = pixels.with_name(pixels.name + ".partial")
    bar = tqdm(total=count, desc="decoding", unit=" photos", disable=not progress)
    workers = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count()
    try:
        # Plain writes and not a writable memmap: a full disk is then an OSError and not a SIGBUS,
        # and the photos need no place before it is known which of them are good.
        with open(partial, "wb") as file, ThreadPoolExecutor(workers) as pool, bar:
            file.write(_npy_header(count, shape))
            for start in range(0, count, 256):  # in chunks: queued results would fill the memory
                chunk = range(start, min(start + 256, count))
                for i, result in zip(chunk, pool.map(decode, chunk), strict=True):
                    if isinstance(result, bytes):
                        file.write(result)
                        kept.append(i)
                    else:
                        skipped.append({"path": str(result.path), "reason": result.reason})
                    bar.update()
            file.seek(0)
            file.write(_npy_header(len(kept), shape))
        if not kept:
            raise UserError(
                f"{listing.root}: none of the {count} photos can be decoded "
                f"({skipped[0]['path']}: {skipped[0]['reason']})"
            )
        index.unlink(missing_ok=True)  # it must never describe another pixel file
        os.replace(partial, pixels)
    finally:
        partial.unlink(missing_ok=True)
    meta = {
        "fingerprint": fingerprint,
        "names": [listing.names[i] for i in kept],
        "labels": listing.labels[kept].tolist(),
        "classes": listing.classes,
        "skipped": skipped,
    }
    write_atomically(index, json.dumps(meta))
    return meta


def _npy_header(count: int, shape: tuple[int, int]) -> bytes:
    """The .npy header of uint8 [count, *shape, 3], of equal length for every count.

    The count is padded to the width of any 64-bit number, so that the header written first can be
    replaced when the number of good photos is known.
    """
    fields = f"{{'descr': '|u1', 'fortran_order': False, 'shape': ({count:>20}, {shape[0]}, "
    fields += f"{shape[1]}, 3), }}"
    prefix = b"\x93NUMPY\x01\x00"
    length = -(-(len(prefix) + 2 + len(fields) + 1) // 64) * 64 - len(prefix) - 2
    return prefix + length.to_bytes(2, "little") + fields.ljust(length - 1).encode() + b"\n"


def _digest(value: object) -> str:
    return hashlib.sha256(json.dumps(value).encode()).hexdigest()


def _fingerprint(listing: Listing, kind: list) -> str:
    """A hash of all that decides the content of a store."""
    files = []
    for path in listing.paths:
        try:
            stat = path.stat()
            files.append((stat.st_size, stat.st_mtime_ns))
        except OSError:  # a broken link: skipped later, with its reason
            files.append((-1, -1))
    labels = listing.labels.tolist()
    return _digest(
        [STORE_VERSION, kind, listing.names, files, labels, listing.classes, listing.boxes]
    )


def _read_index(path: Path) -> dict | None:
    """The description of a store, or None if it is missing or damaged."""
    try:
        return json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError):
        return None


def _matching(index: Path, pixels: Path, fingerprint: str) -> dict | None:
    """The description of the store, if it is the wanted one and its pixels are all there."""
    meta = _read_index(index)
    try:
        if meta and meta["fingerprint"] == fingerprint:
            return meta if len(np.load(pixels, mmap_mode="r")) == len(meta["names"]) else None
    except (OSError, ValueError):
        pass
    return None


@contextlib.contextmanager
def _locked(cache: Path) -> Iterator[None]:
    """Hold the cache alone. The system lets the lock go even if the process is killed."""
    cache.mkdir(parents=True, exist_ok=True)
    with open(cache / ".lock", "w") as file:
        fcntl.flock(file, fcntl.LOCK_EX)
        yield


def _write_skipped(cache: Path) -> None:
    """List the damaged photos of all stores in the cache, each path once, in skipped.jsonl."""
    metas = [_read_index(path) or {"skipped": []} for path in sorted(cache.glob("*-*x*-*.json"))]
    reasons = {item["path"]: item for meta in metas for item in meta["skipped"]}
    lines = [json.dumps(reasons[path]) + "\n" for path in sorted(reasons)]
    write_atomically(cache / "skipped.jsonl", "".join(lines))


class Crops(torch.utils.data.Dataset):
    """Training pictures, addressed by (index, position) from ``Positions``.

    An item is (float32 [3, H, W] in [-1, 1], int label). With ``augment`` it is a random crop,
    whose sides are 1/margin to 1 of the stored ones, resized to (H, W), and mirrored with
    probability 1/2 if ``flip``. The randomness comes from (seed, position) alone: any batch can be
    made again from its position. Without ``augment`` it is the whole stored picture.
    """

    def __init__(self, store: Store, augment: bool = True, flip: bool = True, seed: int = 0):
        self.store, self.augment, self.flip, self.seed = store, augment, flip, seed

    def __len__(self) -> int:
        return len(self.store)

    def __getitem__(self, at: tuple[int, int]) -> tuple[torch.Tensor, int]:
        index, position = at
        picture = self.store.images[index]
        height, width = picture.shape[:2]
        box = (0.0, 0.0, float(width), float(height))
        mirror = False
        if self.augment:
            side, x, y, coin = np.random.default_rng((self.seed, position)).random(4).tolist()
            least = 1 / self.store.margin
            side = least + (1 - least) * side
            left, top = x * (1 - side) * width, y * (1 - side) * height
            right, bottom = left + side * width, top + side * height
            box = (left, top, min(right, width), min(bottom, height))
            mirror = self.flip and coin < 0.5
        if (height, width) != self.store.size or self.augment:
            size = self.store.size[::-1]
            picture = np.asarray(Image.fromarray(picture).resize(size, images.RESAMPLE, box))
        if mirror:
            picture = picture[:, ::-1]
        return images.to_tensor(picture), int(self.store.labels[index])


class Positions(torch.utils.data.Sampler[list[tuple[int, int]]]):
    """The order of training: a batch sampler over the positions start, start + 1, ..., stop - 1.

    A position is a number of images seen. The photo at position p is perm(p mod N), with a new
    permutation of the ``count`` = N photos for every pass, drawn from (seed, pass). So the order
    does not depend on the batch size, and resuming needs no state but ``start``.

    ``batch`` is the global batch: of each one, ``rank`` takes every ``world``-th position. The
    last batch is cut so that exactly ``stop`` is reached. Raises UserError if batch or
    stop - start is not a multiple of ``world`` (the ranks would wait for each other for ever).
    """

    def __init__(
        self,
        count: int,
        batch: int,
        stop: int,
        start: int = 0,
        seed: int = 0,
        rank: int = 0,
        world: int = 1,
    ):
        if batch % world or (stop - start) % world:
            raise UserError(f"batch {batch} and {stop - start} images must divide by world {world}")
        self.count, self.batch, self.stop, self.start = count, batch, stop, start
        self.seed, self.rank, self.world = seed, rank, world

    def __len__(self) -> int:
        return math.ceil(max(self.stop - self.start, 0) / self.batch)

    def __iter__(self) -> Iterator[list[tuple[int, int]]]:
        current, order = -1, np.empty(0, np.int64)
        for first in range(self.start, self.stop, self.batch):
            last = min(first + self.batch, self.stop)
            items = []
            for position in range(first + self.rank, last, self.world):
                epoch, place = divmod(position, self.count)
                if epoch != current:
                    current = epoch
                    order = np.random.default_rng((self.seed, epoch)).permutation(self.count)
                items.append((int(order[place]), position))
            yield items


def fixed_batches(store: Store, batch: int) -> Iterator[tuple[torch.Tensor, torch.Tensor]]:
    """All photos in order, not augmented: float32 [b, 3, H, W] in [-1, 1] and int64 [b]."""
    whole = Crops(store, augment=False)
    for first in range(0, len(store), batch):
        last = min(first + batch, len(store))
        pictures = torch.stack([whole[i, i][0] for i in range(first, last)])
        yield pictures, torch.from_numpy(store.labels[first:last].copy())
