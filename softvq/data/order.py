"""In which order photos are seen, and how each is cut: resumable from the images seen."""

import math
from collections.abc import Iterator
from typing import NamedTuple

import numpy as np
import torch
from PIL import Image

from softvq import images
from softvq.data.store import Store
from softvq.data.stream import Streamed
from softvq.errors import UserError


class Crop(NamedTuple):
    """A training picture, float32 [3, H, W] in [-1, 1], its label, and the photo it is of."""

    pixels: torch.Tensor
    label: int
    row: int
    mirrored: bool


class Crops(torch.utils.data.Dataset[Crop]):
    """Training pictures, addressed by (index, position) from ``Positions``.

    An item is a :class:`Crop`. With ``augment`` it is a random crop, whose sides are 1/margin to 1
    of the stored ones, resized to (H, W), and mirrored with probability 1/2 if ``flip``. The
    randomness comes from (seed, position) alone: any batch can be made again from its position.
    Without ``augment`` it is the whole stored picture.

    In place of a streamed photo that cannot be read stands the next one; see ``Streamed.near``.
    """

    def __init__(self, store: Store, augment: bool = True, flip: bool = True, seed: int = 0):
        self.store, self.augment, self.flip, self.seed = store, augment, flip, seed

    def __len__(self) -> int:
        return len(self.store)

    def __getitem__(self, at: tuple[int, int]) -> Crop:
        index, position = at
        if isinstance(self.store.images, Streamed):
            return self.cut(*self.store.images.near(index), position)
        return self.cut(self.store.images[index], index, position)

    def __getitems__(self, places: list[tuple[int, int]]) -> list[Crop]:
        """Several at once, which a DataLoader asks for."""
        if not isinstance(self.store.images, Streamed):
            return [self[at] for at in places]
        found = self.store.images.all_near([index for index, _ in places])
        return [
            self.cut(picture, row, position)
            for (picture, row), (_, position) in zip(found, places, strict=True)
        ]

    def cut(self, picture: np.ndarray, index: int, position: int) -> Crop:
        """What is made at a position of a stored photo, uint8 [H', W', 3]."""
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
        label = int(self.store.labels[index])
        return Crop(images.to_tensor(picture), label, int(index), mirror)


class Positions(torch.utils.data.Sampler[list[tuple[int, int]]]):
    """The order of training: a batch sampler over the positions start, start + 1, ..., stop - 1.

    A position is a number of images seen. The photo at position p is perm(p mod N), with a new
    permutation of the ``count`` = N photos for every pass, drawn from (seed, pass). So the order
    does not depend on the batch size, and resuming needs no state but ``start``.

    ``batch`` is the global batch: of its ``world`` equal parts, in order, process ``rank`` takes
    one, and gives it in ``pieces`` equal lists, one after the other. The last batch is cut so that
    exactly ``stop`` is reached. Raises UserError if batch or stop - start is not a multiple of
    world x pieces (the processes would wait for each other for ever).
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
        pieces: int = 1,
    ):
        if batch % (world * pieces) or (stop - start) % (world * pieces):
            raise UserError(
                f"train.batch {batch} and the {stop - start} images that are left must divide by "
                f"{world} processes x {pieces} passes (train.accumulate)"
            )
        self.count, self.batch, self.stop, self.start = count, batch, stop, start
        self.seed, self.rank, self.world, self.pieces = seed, rank, world, pieces

    def __len__(self) -> int:
        return math.ceil(max(self.stop - self.start, 0) / self.batch) * self.pieces

    def __iter__(self) -> Iterator[list[tuple[int, int]]]:
        current, order = -1, np.empty(0, np.int64)
        for first in range(self.start, self.stop, self.batch):
            size = min(self.batch, self.stop - first) // (self.world * self.pieces)
            for piece in range(self.rank * self.pieces, (self.rank + 1) * self.pieces):
                items = []
                for position in range(first + piece * size, first + (piece + 1) * size):
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
