"""Images by the ten thousand in one .npz on disk, written in blocks by any number of processes.

    samples.npz             arr_0 uint8 [N, H, W, 3]; arr_1 int64 [N], the labels, if there are any
    samples.npz.partial/    until all of it is there
        array               the file to be: every image has its place in it already
        done                a byte for each block: 1 when its images are on the disk
        settings.json       what decides the images, written last: without it nothing here counts

An .npz is a zip archive. Uncompressed, as here, it holds its arrays as they lie in memory: blocks
are written through a memory map to where they stay, and nothing is copied when the last one is in.
"""

import io
import json
import os
import shutil
import warnings
import zipfile
import zlib
from pathlib import Path
from typing import Any, NoReturn

import numpy as np
from filelock import FileLock, Timeout

from softvq.errors import SoftVQWarning, UserError
from softvq.io import NO_SPACE, replacing, write_atomically

CHUNK = 1 << 24  # bytes read at a time for the checksum


class NpzImages:
    """A file of images in the making; see above. ``settings``, JSON, go into its zip comment.

    ``shape`` is (N, H, W, 3), cut into ``blocks`` of as many images; ``labels`` int64 [N] or None.
    ``overwrite``: at the end replace a file of ours that was made with other settings.
    Call :meth:`begin`, :meth:`write` every block, in any order and from any process, then
    :meth:`seal` once. Killed at any moment, the same calls go on with the blocks still missing.
    """

    def __init__(
        self,
        path: str | Path,
        shape: tuple[int, int, int, int],
        block: int,
        settings: dict[str, Any],
        labels: np.ndarray | None = None,
        overwrite: bool = False,
    ):
        self.path, self.shape, self.labels = Path(path), shape, labels
        self.overwrite = overwrite
        self.held: FileLock | None = None
        self.folder = self.path.with_name(self.path.name + ".partial")
        self.array, self.done = self.folder / "array", self.folder / "done"
        self.blocks = [range(i, min(i + block, shape[0])) for i in range(0, shape[0], block)]
        self.settings = json.loads(json.dumps(settings | {"shape": shape, "block": block}))
        # The zip's header of the array, whose checksum is not yet known, and the array's own.
        self.header = io.BytesIO()
        layout = {"descr": "|u1", "fortran_order": False, "shape": shape}
        np.lib.format.write_array_header_1_0(self.header, layout)
        self.entry = zipfile.ZipInfo("arr_0.npy")  # of 1980, so that equal images are equal files
        self.entry.file_size = len(self.header.getvalue()) + int(np.prod(shape))
        self.entry.compress_size = self.entry.file_size
        self.entry.CRC = self.entry.header_offset = 0
        self.inside = len(self.entry.FileHeader(zip64=True))
        self.size = self.inside + self.entry.file_size

    def begin(self, lock: bool = True, beside: int = 0) -> bool:
        """Find the file or make room for it. Returns True if it is finished already.

        ``lock``: keep every other run out until :meth:`release`; of a run's processes the first one
        does. ``beside``: bytes that will be written elsewhere on the disk. Raises UserError if
        another run is at work, what is there was made with other settings, or the disk is too full.
        """
        if os.path.lexists(self.path) and self._is_this(_sealed_settings(self.path)):
            self._check_sealed()
            shutil.rmtree(self.folder, ignore_errors=True)
            return True
        self.folder.mkdir(parents=True, exist_ok=True)
        if lock:
            self.held = FileLock(self.folder / "lock")
            try:
                self.held.acquire(timeout=0)
            except Timeout:
                raise UserError(
                    f"{self.path}: another process is writing it; wait for it, or stop it"
                ) from None
        try:
            old = json.loads((self.folder / "settings.json").read_text(encoding="utf-8"))
        except (OSError, ValueError, RecursionError):
            old = None  # killed while it made room, or damaged
        if isinstance(old, dict) and self._flags().any():
            self._is_this(old)
        if old != self.settings:
            self._make_room(beside)
        elif not self._fits():
            warnings.warn(
                f"{self.folder}: what it says of the images done does not fit them; they are "
                "drawn again from the first",
                SoftVQWarning,
                stacklevel=2,
            )
            self._make_room(beside)
        return False

    def _flags(self) -> np.ndarray:
        """What is written of each block; none if that cannot be read."""
        return np.fromfile(self.done, np.uint8) if self.done.is_file() else np.empty(0, np.uint8)

    def _fits(self) -> bool:
        """Whether the flags and the file to be are as this class left them, killed or not."""
        flags, start = self._flags(), self.entry.FileHeader(zip64=True)[:4]
        if len(flags) != len(self.blocks) or flags.max(initial=0) > 1 or not self.array.is_file():
            return False
        with open(self.array, "rb") as file:
            head = file.read(self.inside + len(self.header.getvalue()))
        whole = self.array.stat().st_size >= self.size
        return whole and head.startswith(start) and head.endswith(self.header.getvalue())

    def _make_room(self, beside: int) -> None:
        (self.folder / "settings.json").unlink(missing_ok=True)
        self.array.unlink(missing_ok=True)
        needed, free = self.size + beside, shutil.disk_usage(self.folder).free
        if free < needed:
            self._full(needed, free)
        with open(self.array, "xb") as file:
            try:
                file.write(self.entry.FileHeader(zip64=True) + self.header.getvalue())
                file.truncate(self.size)
                if hasattr(os, "posix_fallocate"):
                    # A map of a file with holes would end the process when the disk fills up.
                    os.posix_fallocate(file.fileno(), 0, self.size)
                os.fsync(file.fileno())
            except OSError as error:
                if error.errno in NO_SPACE:
                    self._full(needed, shutil.disk_usage(self.folder).free)
                raise
        with replacing(self.done) as partial:
            partial.write_bytes(bytes(len(self.blocks)))
        write_atomically(self.folder / "settings.json", json.dumps(self.settings))

    def _full(self, needed: int, free: int) -> NoReturn:
        shutil.rmtree(self.folder)
        raise UserError(
            f"{self.path}: takes {needed / 1e9:.2f} GB, and {free / 1e9:.2f} GB are free; free "
            "some space, or give a file on another disk"
        )

    def _is_this(self, old: dict[str, Any] | None) -> bool:
        """Whether what is there was made with the same settings.

        Raises UserError if it is not ours, and if it has other settings and is not to give way.
        """
        if old is None:
            raise UserError(f"{self.path}: is there, and not of softvq; give another file")
        keys = self.settings | old
        changed = [key for key in keys if self.settings.get(key) != old.get(key)]
        if changed and not self.overwrite:
            named = [key if key.isidentifier() else repr(key) for key in changed]
            raise UserError(
                f"{self.path}: holds other images (another {', '.join(named)}); give another "
                "file, or --overwrite to replace them"
            )
        return not changed

    def _check_sealed(self) -> None:
        """Raises UserError if the finished file's arrays are not what was written."""
        labels, start = self._labels(), self.header.getvalue()
        try:
            with zipfile.ZipFile(self.path) as archive:
                # An array that was emptied together with its checksum passes this.
                damaged = archive.testzip()
                if damaged is None:
                    with archive.open("arr_0.npy") as images:
                        whole = images.read(len(start)) == start
                    if not whole or archive.getinfo("arr_0.npy").file_size != self.entry.file_size:
                        damaged = "arr_0.npy"
                    elif labels is not None and archive.read("arr_1.npy") != labels:
                        damaged = "arr_1.npy"
        except (
            *(OSError, EOFError, zlib.error, zipfile.BadZipFile, KeyError, ValueError),
            RuntimeError,  # of an encrypted zip, or one of another version: ours is neither
        ) as error:
            damaged = str(error) or "cut short"
        if damaged is not None:
            raise UserError(
                f"{self.path}: damaged since it was written ({damaged}); delete it, and repeat the "
                "command"
            )

    def _labels(self) -> bytes | None:
        """The labels as the archive holds them."""
        if self.labels is None:
            return None
        held = io.BytesIO()
        np.save(held, self.labels.astype(np.int64), allow_pickle=False)
        return held.getvalue()

    def missing(self) -> list[int]:
        """The blocks whose images are not yet on the disk."""
        return np.flatnonzero(np.fromfile(self.done, np.uint8) == 0).tolist()

    def images_done(self) -> int:
        """How many images are on the disk, from whichever process."""
        return self.shape[0] - sum(len(self.blocks[i]) for i in self.missing())

    def discard_if_empty(self) -> None:
        """Give the room back if no image is in it yet."""
        if len(self.missing()) == len(self.blocks):
            shutil.rmtree(self.folder)

    def write(self, block: int, images: np.ndarray) -> None:
        """Put the images of a block, uint8 [n, H, W, 3], on the disk, and then its flag."""
        place = self.blocks[block]
        shape = (len(place), *self.shape[1:])
        if images.shape != shape or images.dtype != np.uint8:
            raise ValueError(f"block {block} is uint8 {shape}, got {images.dtype} {images.shape}")
        start = self.inside + len(self.header.getvalue()) + place.start * int(np.prod(shape[1:]))
        target = np.memmap(self.array, np.uint8, "r+", start, shape)
        target[:] = images
        target.flush()
        flags = np.memmap(self.done, np.uint8, "r+")
        flags[block] = 1
        flags.flush()

    def release(self) -> None:
        """Let other runs in."""
        if self.held is not None:
            self.held.release()

    def seal(self) -> None:
        """Write the checksum, the labels and the archive's directory, and give it its name."""
        with open(self.array, "r+b") as file:
            file.truncate(self.size)  # off with the directory of a seal that was cut short
            file.seek(self.inside)
            self.entry.CRC = self.entry.header_offset = 0
            while chunk := file.read(CHUNK):
                self.entry.CRC = zlib.crc32(chunk, self.entry.CRC)
            file.seek(0)
            file.write(self.entry.FileHeader(zip64=True))
            file.seek(self.size)
            with zipfile.ZipFile(file, "w") as archive:
                # zipfile has no word for "it is there already": its list of entries is told.
                archive.infolist().append(self.entry)
                if (labels := self._labels()) is not None:
                    archive.writestr(zipfile.ZipInfo("arr_1.npy"), labels)
                archive.comment = json.dumps(self.settings).encode()
            file.flush()
            os.fsync(file.fileno())
        os.replace(self.array, self.path)
        shutil.rmtree(self.folder)


def _sealed_settings(path: Path) -> dict[str, Any] | None:
    """What a finished file was made with; None if it is none of ours."""
    try:
        with zipfile.ZipFile(path) as archive:
            values = json.loads(archive.comment)
    except (OSError, ValueError, RecursionError, NotImplementedError, zipfile.BadZipFile):
        return None
    return values if isinstance(values, dict) and "shape" in values else None


def check_room(path: str | Path, needed: int) -> None:
    """Raises UserError if the disk of ``path`` has less than ``needed`` bytes free."""
    place = Path(path).absolute()
    folder = next(parent for parent in (place, *place.parents) if parent.is_dir())
    free = shutil.disk_usage(folder).free
    if free < needed:
        raise UserError(
            f"{path}: takes {needed / 1e9:,.2f} GB, and {free / 1e9:,.2f} GB are free; ask for "
            "less, or give a file on another disk"
        )
