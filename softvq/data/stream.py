"""Photos decoded when they are asked for: nothing is copied, and training begins at once."""

import json
import os
import sys
from collections import deque
from collections.abc import Callable, Iterable, Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Protocol, TypeVar

import numpy as np
from PIL import Image

from softvq import images
from softvq.data.photos import Listing
from softvq.errors import UserError

Item = TypeVar("Item")
Found = TypeVar("Found")

THREADS = 8  # that read and decode photos; Pillow computes without Python's lock
SLOW = 30.0  # seconds, after which it is said what is waited for
MOST_LOST = 1000  # photos in a row that cannot be read


class Pixels(Protocol):
    """Photos of one size, in memory, on disk or streamed: as an array uint8 [N, H, W, 3]."""

    @property
    def shape(self) -> tuple[int, ...]: ...

    def __len__(self) -> int: ...

    def __iter__(self) -> Iterator[np.ndarray]: ...

    def __getitem__(self, rows: Any, /) -> np.ndarray: ...


@dataclass(frozen=True)
class Rows:
    """Some of the photos, read when they are asked for. ``rows`` int64 [n]: which."""

    images: Pixels
    rows: np.ndarray

    @property
    def shape(self) -> tuple[int, ...]:
        return (len(self.rows), *self.images.shape[1:])

    def __len__(self) -> int:
        return len(self.rows)

    def __iter__(self) -> Iterator[np.ndarray]:
        return (self.images[row] for row in self.rows)

    def __getitem__(self, i: Any, /) -> np.ndarray:
        return np.asarray(self.images[self.rows[i]])


class Streamed:
    """Photos of a listing, as an array uint8 [N, H, W, 3] would give them.

    ``shape`` (H, W) and ``fit``: what :func:`softvq.images.fit` makes of each. ``lost``: a file to
    which :meth:`near` adds what cannot be read, {"path", "reason"} a line.
    """

    def __init__(self, listing: Listing, shape: tuple[int, int], fit: str, lost: Path | None):
        self.listing, self.fit, self.lost = listing, fit, lost
        self.shape = (len(listing.names), *shape, 3)
        self._said: set[str] = set()  # where photos were lost
        self._known: set[str] = set()  # lost photos

    def __len__(self) -> int:
        return self.shape[0]

    def __iter__(self) -> Iterator[np.ndarray]:
        return (self.read(row) for row in range(len(self)))

    def __getitem__(self, rows: Any) -> np.ndarray:
        """Photos by their rows, a number, a slice or an array. Raises images.BadImage."""
        if isinstance(rows, int | np.integer):
            return self.read(int(rows))
        chosen = np.arange(len(self))[rows]
        found = [self.read(int(row)) for row in chosen]
        return np.stack(found) if found else np.empty((0, *self.shape[1:]), np.uint8)

    def read(self, row: int) -> np.ndarray:
        """One photo, uint8 [H, W, 3]. Raises images.BadImage."""
        return self.fitted(self.listing.read(row))

    def fitted(self, picture: Image.Image) -> np.ndarray:
        """A picture as one of these."""
        return np.asarray(images.fit(picture, (self.shape[1], self.shape[2]), self.fit))

    def near(self, row: int) -> tuple[np.ndarray, int]:
        """One photo and its row; in place of one that cannot be read, the next that can.

        Raises UserError where that would be far away.
        """
        bad = None
        for there in range(row, row + min(MOST_LOST, len(self))):
            try:
                return self.read(there % len(self)), there % len(self)
            except images.BadImage as found:
                bad = found
                self._lose(there % len(self), found)
        raise UserError(f"{self.listing.root}: {MOST_LOST} photos in a row cannot be read ({bad})")

    def all_near(self, rows: Sequence[int]) -> list[tuple[np.ndarray, int]]:
        """:meth:`near` for several rows at once, in their order."""
        return list(in_threads(self.near, rows, lambda row: self.listing.place(row)))

    def _lose(self, row: int, bad: images.BadImage) -> None:
        name, place = self.listing.names[row], self.listing.place(row)
        if name in self._known:
            return
        self._known.add(name)
        if self.lost is not None:
            lose(self.lost, name, bad.reason)
        if place not in self._said:
            self._said.add(place)
            listed = f" (all that are: {self.lost})" if self.lost is not None else ""
            print(f"{bad}: replaced by another photo{listed}", file=sys.stderr)

    def __getstate__(self) -> dict[str, Any]:
        return self.__dict__ | {"_said": set(), "_known": set()}


def lose(lost: Path, path: str, reason: str) -> None:
    """Add a line to a list of what cannot be read; any process may."""
    with open(lost, "a", encoding="utf-8") as file:
        file.write(json.dumps({"path": path, "reason": reason}) + "\n")


def count_lost(lost: Path) -> int:
    """How many a list of what cannot be read names; 0 if there is none."""
    if not lost.is_file():
        return 0
    return len({json.loads(line)["path"] for line in lost.read_text("utf-8").splitlines()})


def in_threads(
    function: Callable[[Item], Found],
    items: Iterable[Item],
    place: Callable[[Item], str] = str,
    ahead: int = 4 * THREADS,
) -> Iterator[Found]:
    """``map`` by threads, in order, at most ``ahead`` results before they are asked for.

    What is waited for long is said, as ``place`` calls it.
    """
    waiting: deque[tuple[Item, Future[Found]]] = deque()

    def first() -> Found:
        item, future = waiting.popleft()
        while True:
            try:
                return future.result(SLOW)
            except TimeoutError:
                if future.done():  # its own error
                    raise
                print(f"{place(item)}: slow, waiting for it", file=sys.stderr)

    pool = ThreadPoolExecutor(min(THREADS, 4 * (os.cpu_count() or 1)))
    try:
        for item in items:
            waiting.append((item, pool.submit(function, item)))
            if len(waiting) >= ahead:
                yield first()
        while waiting:
            yield first()
    finally:
        pool.shutdown(wait=False, cancel_futures=True)
