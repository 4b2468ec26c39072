"""Photos decoded once: Listing -> Store (uint8, on disk).

train-256x256-1a2b3c4d.npy   the pixels
train-256x256-1a2b3c4d.json  what they are of, written last
skipped.jsonl                the damaged photos of all stores in the folder
"""

import contextlib
import hashlib
import json
import math
import os
import shutil
import tempfile
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, BinaryIO

import numpy as np
from tqdm import tqdm

from softvq import images
from softvq.data.find import find_photos
from softvq.data.photos import Listing
from softvq.data.stream import Pixels, Rows, Streamed
from softvq.errors import UserError
from softvq.io import locked, replacing, sweep, write_atomically
from softvq.outputs import TEMPORARY
from softvq.processes import first_of_all, gathered

STORE_VERSION = 2  # raise it when the stored pixels would come out differently
ALIVE = ".alive"  # in a temporary store, locked as long as its process lives
ABANDONED = 60.0  # seconds without a lock, after which it is nobody's


@dataclass
class Store:
    """Photos of one size.

    ``images`` is uint8 [N, ceil(H * margin), ceil(W * margin), 3] for ``size`` = (H, W): a
    read-only memmap, or :class:`Streamed`, which decodes what it is asked for; ``labels`` int64
    [N]; ``names`` the relative paths; ``skipped`` the damaged photos left out, as {"path",
    "reason"}, as far as they are known; ``fingerprint`` changes when the photos do; ``root`` is the
    folder that the names are relative to, if any; ``summary`` says what was found there, in one
    line or two.
    """

    images: Pixels
    labels: np.ndarray
    names: list[str]
    classes: list[str]
    skipped: list[dict[str, str]]
    size: tuple[int, int]
    margin: float
    fingerprint: str
    root: Path | None = None
    summary: str = ""

    def __len__(self) -> int:
        return len(self.names)

    def some(self, rows: np.ndarray) -> "Store":
        """The photos ``rows``, int64 [n], alone."""
        names = [self.names[row] for row in rows]
        return replace(self, images=Rows(self.images, rows), labels=self.labels[rows], names=names)


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
            with locked(cache / ".lock"):  # a second process waits, and finds the finished store
                meta = _matching(index, pixels, fingerprint)
                if meta is None:
                    meta = _build(listing, shape, fit, pixels, index, fingerprint, progress)
                    _write_skipped(cache)
        except OSError as error:
            raise UserError(
                f"{cache}: cannot write the decoded photos ({error.strerror or error}); give "
                "another folder for the cache"
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
        root=None if listing.boxes else listing.root,
        summary=listing.summary(),
    )


def stream_store(
    source: str | Path,
    split: str,
    size: tuple[int, int],
    margin: float = 1.0,
    fit: str = "crop",
    lost: Path | None = None,
) -> Store:
    """:func:`open_store` of which nothing is decoded before it is asked for.

    ``lost``: see :class:`Streamed`. Raises UserError as ``find_photos`` does.
    """
    listing = find_photos(source, split)
    kind = [str(listing.root.resolve()), split, *size, margin, fit]
    shape = (math.ceil(size[0] * margin), math.ceil(size[1] * margin))
    return Store(
        images=Streamed(listing, shape, fit, lost),
        labels=listing.labels,
        names=listing.names,
        classes=listing.classes,
        skipped=[],
        size=(size[0], size[1]),
        margin=margin,
        fingerprint=_fingerprint(listing, kind),
        root=None if listing.boxes else listing.root,
        summary=listing.summary(),
    )


@contextlib.contextmanager
def temporary_store(
    source: str | Path,
    split: str,
    size: tuple[int, int],
    beside: str | Path | None = None,
    margin: float = 1.0,
    fit: str = "crop",
    progress: bool = True,
) -> Iterator[Store]:
    """:func:`open_store` in a folder that is gone afterwards.

    It lies in ``beside``, or among the system's temporary files. What a killed process left there
    is swept away first. Of processes that torchrun started the first makes it, for all.
    """
    if not first_of_all():
        folder = Path(gathered("")[0])
        yield open_store(source, split, size, folder, margin, fit, progress=False)
        gathered(None)
        return
    place = Path(tempfile.gettempdir() if beside is None else beside)
    try:
        place.mkdir(parents=True, exist_ok=True)
        sweep_abandoned(place)
        folder = Path(tempfile.mkdtemp(prefix=TEMPORARY, dir=place))
    except OSError as error:
        raise UserError(f"{place}: cannot be written ({error.strerror})") from None
    try:
        with locked(folder / ALIVE):
            store = open_store(source, split, size, folder, margin, fit, progress)
            gathered(str(folder))
            yield store
            gathered(None)  # now none of the others reads it any more
    finally:
        shutil.rmtree(folder, ignore_errors=True)


def sweep_abandoned(place: Path) -> None:
    """Delete the temporary stores in a folder whose process lives no more."""
    for folder in place.glob(TEMPORARY + "*"):
        if not folder.is_dir() or folder.is_symlink():
            continue
        try:
            if not (folder / ALIVE).exists():
                if time.time() - folder.stat().st_mtime > ABANDONED:  # else it is being made
                    shutil.rmtree(folder, ignore_errors=True)
                continue
            with locked(folder / ALIVE, busy="at work"):
                shutil.rmtree(folder, ignore_errors=True)
        except (OSError, UserError):  # another user's, or at work
            continue


def _build(
    listing: Listing,
    shape: tuple[int, int],
    fit: str,
    pixels: Path,
    index: Path,
    fingerprint: str,
    progress: bool,
) -> dict[str, Any]:
    """Decode the listing into ``pixels`` and describe it in ``index``; returns the description."""
    count = len(listing.names)

    def decode(i: int) -> bytes | images.BadImage:
        try:
            return images.fit(listing.read(i), shape, fit).tobytes()
        except images.BadImage as bad:
            return bad

    kept: list[int] = []
    skipped: list[dict[str, str]] = []
    sweep(pixels.parent)  # of killed processes: the folder is ours alone
    bar = tqdm(total=count, desc="decoding", unit=" photos", disable=not progress)
    workers = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count()
    needed = count * math.prod(shape) * 3
    with replacing(pixels, needed) as partial:
        # Plain writes and not a writable memmap: a full disk is then an OSError and not a SIGBUS,
        # and the photos need no place before it is known which of them are good.
        with open(partial, "wb") as file, ThreadPoolExecutor(workers) as pool, bar:
            _write_header(file, count, shape)
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
            _write_header(file, len(kept), shape)
        if not kept:
            raise UserError(
                f"{listing.root}: none of the {count} photos can be decoded "
                f"({skipped[0]['path']}: {skipped[0]['reason']})"
            )
        index.unlink(missing_ok=True)  # it must never describe another pixel file
    meta = {
        "fingerprint": fingerprint,
        "names": [listing.names[i] for i in kept],
        "labels": listing.labels[kept].tolist(),
        "classes": listing.classes,
        "skipped": skipped,
    }
    write_atomically(index, json.dumps(meta))
    return meta


def _write_header(file: BinaryIO, count: int, shape: tuple[int, int]) -> None:
    """The .npy header of uint8 [count, *shape, 3].

    NumPy leaves room for the first axis to grow, so that the header written first can be replaced
    when the number of good photos is known.
    """
    layout = {"descr": "|u1", "fortran_order": False, "shape": (count, *shape, 3)}
    np.lib.format.write_array_header_1_0(file, layout)


def _digest(value: object) -> str:
    return hashlib.sha256(json.dumps(value).encode()).hexdigest()


def _fingerprint(listing: Listing, kind: list[Any]) -> str:
    """A hash of all that decides the content of a store."""
    labels = listing.labels.tolist()
    files, classes = listing.stamps(), listing.classes
    return _digest([STORE_VERSION, kind, listing.names, files, labels, classes, listing.boxes])


def _read_index(path: Path) -> dict[str, Any] | None:
    """The description of a store, or None if it is missing or damaged."""
    try:
        found = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError):
        return None
    return found if isinstance(found, dict) else None


def _matching(index: Path, pixels: Path, fingerprint: str) -> dict[str, Any] | None:
    """The description of the store, if it is the wanted one and its pixels are all there."""
    meta = _read_index(index)
    try:
        if meta and meta["fingerprint"] == fingerprint:
            return meta if len(np.load(pixels, mmap_mode="r")) == len(meta["names"]) else None
    except (OSError, ValueError):
        pass
    return None


def _write_skipped(cache: Path) -> None:
    """List the damaged photos of all stores in the cache, each path once, in skipped.jsonl."""
    metas = [_read_index(path) or {"skipped": []} for path in sorted(cache.glob("*-*x*-*.json"))]
    reasons = {item["path"]: item for meta in metas for item in meta["skipped"]}
    lines = [json.dumps(reasons[path]) + "\n" for path in sorted(reasons)]
    write_atomically(cache / "skipped.jsonl", "".join(lines))
