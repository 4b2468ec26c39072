"""Folders of photos that are drawn here."""

from pathlib import Path

import numpy as np
from PIL import Image

SIDE = 32  # of the tiles


def photos(root: Path, count: int, classes: int = 2) -> Path:
    """A folder of small distinct photos in class folders."""
    rng = np.random.default_rng(0)
    for i in range(count):
        path = root / f"class{i % classes}" / f"{i:03d}.png"
        path.parent.mkdir(parents=True, exist_ok=True)
        Image.fromarray(rng.integers(0, 256, (30, 40, 3), dtype=np.uint8)).save(path)
    return root


def tiles(root: Path, train: int = 16, val: int = 8) -> tuple[Path, Path]:
    """Folders train and val with classes good and hole, and masks of the holes: dark disks."""
    rng = np.random.default_rng(0)
    rows, columns = np.mgrid[:SIDE, :SIDE]
    grow = Image.Resampling.BICUBIC
    for split, count in (("train", train), ("val", val)):
        for name in ("good", "hole"):
            for i in range(count):
                coarse = Image.fromarray(rng.integers(80, 220, (16, 16)).astype(np.uint8))
                tile = np.array(coarse.resize((SIDE, SIDE), grow))
                if name == "hole":
                    y, x = rng.integers(8, 24, 2)
                    hole = (rows - y) ** 2 + (columns - x) ** 2 <= 16
                    tile[hole] = 10
                    path = root / "masks" / split / name / f"{i}.png"
                    path.parent.mkdir(parents=True, exist_ok=True)
                    Image.fromarray(np.uint8(255 * hole)).save(path)
                path = root / "photos" / split / name / f"{i}.png"
                path.parent.mkdir(parents=True, exist_ok=True)
                Image.fromarray(tile).convert("RGB").save(path)
    return root / "photos", root / "masks"
