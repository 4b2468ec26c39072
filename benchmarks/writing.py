"""What it costs to keep 256-pixel images: blocks into one .npz, and PNG files read back into one.

    python benchmarks/writing.py [--images 2000] [--batch 64] [--out FOLDER]

The pictures are made beforehand, crops of the built-in photos, so that nothing is timed but the
writing, up to the finished .npz that evaluators read. Prints a Markdown table of ms per image.
"""

import argparse
import tempfile
import time
from collections.abc import Callable
from pathlib import Path

import numpy as np
from PIL import Image

from softvq import images
from softvq.data import find_photos
from softvq.npz import NpzImages

SIZE = 256


def blocks(path: Path, pictures: np.ndarray, count: int) -> list[tuple[str, Callable[[], object]]]:
    """The steps of ``softvq generate --npz``."""
    file = NpzImages(path, (count, *pictures.shape[1:]), len(pictures), {}, np.arange(count))

    def write() -> None:
        for block, place in enumerate(file.blocks):
            file.write(block, pictures[: len(place)])

    return [("make room", file.begin), ("write blocks", write), ("seal", file.seal)]


def files(path: Path, pictures: np.ndarray, count: int) -> list[tuple[str, Callable[[], object]]]:
    """The steps of the usual way: a PNG file for each image, all read into one array, saved."""
    folder = path.with_suffix("")
    array = np.empty((count, *pictures.shape[1:]), np.uint8)

    def write() -> None:
        folder.mkdir()
        for i in range(count):
            Image.fromarray(pictures[i % len(pictures)]).save(folder / f"{i:06d}.png")

    def read() -> None:
        for i in range(count):
            array[i] = np.asarray(Image.open(folder / f"{i:06d}.png"))

    def save() -> None:
        np.savez(path, arr_0=array, arr_1=np.arange(count))

    return [("write PNG files", write), ("read them back", read), ("save", save)]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--images", type=int, default=2000)
    parser.add_argument("--batch", type=int, default=64)
    parser.add_argument(
        "--out", help="folder on the disk to be measured (default: a temporary one)"
    )
    args = parser.parse_args()
    listing = find_photos("builtin", "train")
    chosen = np.linspace(0, len(listing.names) - 1, args.batch).astype(int)
    fitted = [images.fit(listing.read(i), (SIZE, SIZE)) for i in chosen]
    pictures = np.stack([np.asarray(picture) for picture in fitted])
    print(f"{args.images:,} images of {SIZE} x {SIZE} pixels, blocks of {args.batch}")
    print("| way | step | ms per image |\n|---|---|---|")
    with tempfile.TemporaryDirectory(dir=args.out) as folder:
        results = []
        for name, way in (("npz", blocks), ("PNG", files)):
            path = Path(folder, f"{name}.npz")
            total = 0.0
            for step, run in way(path, pictures, args.images):
                started = time.perf_counter()
                run()
                spent = (time.perf_counter() - started) / args.images * 1000
                total += spent
                print(f"| {name} | {step} | {spent:.2f} |")
            print(f"| **{name}** | **all** | **{total:.2f}** |")
            with np.load(path, allow_pickle=False) as file:
                results.append(file["arr_0"])
    assert np.array_equal(*results), "the two files hold other images"


if __name__ == "__main__":
    main()
