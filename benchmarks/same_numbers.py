"""What 512 numbers per photo are worth without a network: a thumbnail, principal components.

    python benchmarks/same_numbers.py --data FOLDER

Prints a Markdown table on the held-out photos, all at the shipped tokenizer's size and with at most
its number of floats: PSNR, SSIM, and the Frechet distance on the features of the shipped probe.
Thumbnails and components keep floats, not bytes. Two rows give the distances a scale: other photos,
as many of each class drawn from the training set, and uniform noise.
"""

import argparse
import tempfile

import numpy as np
from PIL import Image

from softvq.coding import reconstruct_all
from softvq.data import open_store
from softvq.evaluate.baselines import coded, thumbnail
from softvq.evaluate.distances import frechet_distance
from softvq.evaluate.features import probe_features
from softvq.evaluate.pixels import psnr, ssim
from softvq.models import model_folder, open_tokenizer
from softvq.probe import Probe


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--data", required=True, help="folder of photos")
    args = parser.parse_args()
    tokenizer = open_tokenizer("shipped")
    probe = Probe.from_pretrained(model_folder("shipped") / "probe")
    config = tokenizer.config
    numbers, size = config.tokens * config.channels, (config.height, config.width)
    with tempfile.TemporaryDirectory() as cache:
        store = open_store(args.data, "train", size, cache, 1.0)
        train = np.asarray(store.images)
        held_out = open_store(args.data, "val", size, cache, 1.0)
        originals, rebuilt = reconstruct_all(tokenizer, held_out)
        both = np.concatenate([train, train[:, :, ::-1]])  # and their mirror images
        # Lanczos keeps more in a thumbnail than bicubic does: the best that it can be.
        small = thumbnail(originals, numbers, False, Image.Resampling.LANCZOS)
        components = coded("pca", both, originals, 0, numbers, grey=False, most=len(both))
    print(f"{len(originals)} held-out photos, {size[0]} x {size[1]}, {numbers} numbers each")
    print("| | PSNR dB | SSIM | FD |\n|---|---|---|---|")
    real = probe_features(probe, originals)

    def distance(pictures: np.ndarray) -> float:
        return frechet_distance(real, probe_features(probe, pictures))

    rows = {
        f"thumbnail {small.setting}, enlarged": small.rebuilt,
        f"{components.floats} principal components of {len(both):,} training pictures": (
            components.rebuilt
        ),
        f"{config.tokens} x {config.channels} tokens": rebuilt,
    }
    for name, pictures in rows.items():
        print(
            f"| {name} | {psnr(originals, pictures):.2f} | {ssim(originals, pictures):.3f} | "
            f"{distance(pictures):.2f} |"
        )
    draws = np.random.default_rng(0)
    counts = np.bincount(held_out.labels)
    others = np.concatenate(
        [
            draws.choice(np.flatnonzero(store.labels == label), count, replace=False)
            for label, count in enumerate(counts)
        ]
    )
    print(f"| {len(others)} training photos | | | {distance(train[others]):.2f} |")
    noise = draws.integers(0, 256, originals.shape, dtype=np.uint8)
    print(f"| uniform noise | | | {distance(noise):.2f} |")


if __name__ == "__main__":
    main()
