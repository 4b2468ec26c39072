"""What every task does with photos: open both splits, and take random crops of one."""

import sys
from collections.abc import Iterator
from dataclasses import dataclass, replace
from pathlib import Path

import torch
from torch import Tensor
from torch.utils.data import DataLoader

from softvq.coding import SKIPPED
from softvq.data import Crops, Positions, Store, is_sharded, open_store, stream_store
from softvq.errors import first_started
from softvq.recipe import DataConfig, TrainConfig


@dataclass
class Batch:
    """Crops of photos.

    pixels: float32 [B, 3, H, W] in [-1, 1].  labels: int64 [B].  rows: int64 [B], which photos of
    the store.  mirrored: bool [B].  seen: images that training has seen before this batch.
    """

    pixels: Tensor
    labels: Tensor
    rows: Tensor
    mirrored: Tensor
    seen: int

    def to(self, device: torch.device) -> "Batch":
        """The batch with what networks read, pixels and labels, on ``device``."""
        return replace(self, pixels=self.pixels.to(device), labels=self.labels.to(device))


def open_photos(
    data: DataConfig, size: tuple[int, int], cache: Path, say: bool = True
) -> tuple[Store, Store]:
    """Training photos, with their margin, and held-out photos; decoded into ``cache``.

    Photos in shards are streamed; those that cannot be read are then listed there. ``say`` on
    stderr what was found, by one process. Raises UserError as ``open_store``.
    """

    def opened(split: str, margin: float) -> Store:
        if is_sharded(data.source):
            cache.mkdir(parents=True, exist_ok=True)
            return stream_store(data.source, split, size, margin, data.fit, cache / SKIPPED)
        return open_store(data.source, split, size, cache, margin, data.fit)

    photos, held_out = opened("train", data.margin), opened("val", 1.0)
    if say and first_started():
        print(photos.summary, file=sys.stderr)
    return photos, held_out


def crop_batches(
    photos: Store, data: DataConfig, config: TrainConfig, start: int, rank: int, world: int
) -> Iterator[Batch]:
    """Batches of random crops from image ``start`` on: for each step ``config.accumulate``."""
    crops = Crops(photos, flip=data.flip, seed=config.seed)
    pieces = config.accumulate
    order = Positions(
        len(crops), config.batch, config.images, start, config.seed, rank, world, pieces
    )
    loader = DataLoader(crops, batch_sampler=order, num_workers=data.workers)
    for step, some in enumerate(loader):
        pixels, labels, rows, mirrored = some
        yield Batch(pixels, labels, rows, mirrored, start + step // pieces * config.batch)
