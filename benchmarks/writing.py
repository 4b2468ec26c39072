"""What it costs to keep 256-pixel images: blocks into one .npz, and PNG files read back into one.

    python benchmarks/writing.py [--images 2000] [--batch 64] [--draw-ms 5] [--out FOLDER]

A stand-in for network and decoder hands out crops of the built-in photos, made beforehand, at once
or after ``--draw-ms`` an image, as a GPU would that leaves the processor alone meanwhile. Prints a
Markdown table of ms per image beyond that time, up to the finished .npz that evaluators read.
"""

import argparse
import hashlib
import tempfile
import time
from collections.abc import Callable
from pathlib import Path

import numpy as np
from PIL import Image

from softvq import images
from softvq.data import find_photos
from softvq.generate import write_images
from softvq.npz import NpzImages

SIZE = 256


def npz(path: Path, draw: Callable[[range], np.ndarray], count: int, batch: int) -> None:
    """As ``softvq generate --npz`` keeps them."""
    file = NpzImages(path, (count, SIZE, SIZE, 3), batch, {}, np.arange(count))
    write_images(file, lambda block: draw(file.blocks[block]), progress=False)


def png(path: Path, draw: Callable[[range], np.ndarray], count: int, batch: int) -> None:
    """The usual way: a PNG file for each image, all read back into one array."""
    folder = path.with_suffix("")
    folder.mkdir()
    for first in range(0, count, batch):
        place = range(first, min(first + batch, count))
        for i, picture in zip(place, draw(place), strict=True):
            Image.fromarray(picture).save(folder / f"{i:06d}.png")
    opened = [np.asarray(Image.open(folder / f"{i:06d}.png")) for i in range(count)]
    np.savez(path, arr_0=np.stack(opened), arr_1=np.arange(count))


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--images", type=int, default=2000)
    parser.add_argument("--batch", type=int, default=64)
    parser.add_argument("--draw-ms", type=float, default=5.0, help="of the stand-in (default: 5)")
    parser.add_argument("--out", help="folder on the disk to measure (default: a temporary one)")
    args = parser.parse_args()
    listing = find_photos("builtin", "train")
    chosen = np.linspace(0, len(listing.names) - 1, args.batch).astype(int)
    fitted = [images.fit(listing.read(i), (SIZE, SIZE)) for i in chosen]
    pictures = np.stack([np.asarray(picture) for picture in fitted])
    print(f"{args.images:,} images of {SIZE} x {SIZE} pixels, {args.batch} at a time")
    print("| way | drawing, ms per image | beyond it, ms per image |\n|---|---|---|")
    found = set()
    for way in (npz, png):
        for pause in (0.0, args.draw_ms):

            def draw(place: range, pause: float = pause) -> np.ndarray:
                time.sleep(pause * len(place) / 1000)
                return pictures[: len(place)]

            with tempfile.TemporaryDirectory(dir=args.out) as folder:
                path = Path(folder, "samples.npz")
                started = time.perf_counter()
                way(path, draw, args.images, args.batch)
                spent = (time.perf_counter() - started) * 1000 / args.images
                print(f"| {way.__name__} | {pause:g} | {spent - pause:.2f} |", flush=True)
                with np.load(path, allow_pickle=False) as file:
                    found.add(hashlib.sha256(file["arr_0"]).hexdigest())
    assert len(found) == 1, "the files hold other images"


if __name__ == "__main__":
    main()
