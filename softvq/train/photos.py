"""What every task does with photos: open both splits, and take random crops of one."""

from pathlib import Path

from torch.utils.data import DataLoader

from softvq.data import Crops, Positions, Store, open_store
from softvq.recipe import DataConfig, TrainConfig


def open_photos(data: DataConfig, size: tuple[int, int], cache: Path) -> tuple[Store, Store]:
    """Training photos, with their margin, and held-out photos; decoded into ``cache``."""
    photos = open_store(data.source, "train", size, cache, data.margin, data.fit)
    return photos, open_store(data.source, "val", size, cache, 1.0, data.fit)


def crop_batches(
    photos: Store, data: DataConfig, config: TrainConfig, start: int, rank: int, world: int
) -> DataLoader:
    """Batches of random crops from image ``start`` on: [B, 3, H, W] in [-1, 1] and labels [B]."""
    crops = Crops(photos, flip=data.flip, seed=config.seed)
    order = Positions(len(crops), config.batch, config.images, start, config.seed, rank, world)
    return DataLoader(crops, batch_sampler=order, num_workers=data.workers)
