"""What 512 numbers per photo are worth without a network: a thumbnail, principal components.

    python benchmarks/same_numbers.py --data FOLDER

Prints a Markdown table on the held-out photos, all at the shipped tokenizer's size and with at most
its number of floats: PSNR, SSIM, and the Frechet distance on the features of the shipped probe.
Thumbnails and components keep floats, not bytes. Two rows give the distances a scale: other photos,
as many of each class drawn from the training set, and uniform noise.
"""

import argparse
import math
import tempfile

import numpy as np
from PIL import Image

from softvq.data import open_store
from softvq.evaluate.distances import frechet_distance
from softvq.evaluate.features import probe_features
from softvq.evaluate.pixels import psnr, ssim
from softvq.evaluate.probe import Probe
from softvq.pipeline import load_tokenizer, model_folder
from softvq.train.tokenizer import reconstruct_all


def thumbnail(pictures: np.ndarray, numbers: int) -> tuple[np.ndarray, int]:
    """Each picture reduced to the largest square of at most ``numbers`` values, and enlarged."""
    side = math.isqrt(numbers // 3)
    height, width = pictures.shape[1:3]
    small = [Image.fromarray(p).resize((side, side), Image.Resampling.LANCZOS) for p in pictures]
    back = [np.asarray(p.resize((width, height), Image.Resampling.BICUBIC)) for p in small]
    return np.stack(back), side


def principal_components(train: np.ndarray, pictures: np.ndarray, numbers: int) -> np.ndarray:
    """Each picture as its first ``numbers`` components of the training pictures and mirror images.

    Components are found in the space spanned by the photos, through their Gram matrix.
    """
    x = np.concatenate([train, train[:, :, ::-1]]).reshape(2 * len(train), -1).astype(np.float32)
    mean = x.mean(0)
    x -= mean
    _, vectors = np.linalg.eigh(x @ x.T)
    components = vectors[:, ::-1][:, :numbers].T @ x
    components /= np.linalg.norm(components, axis=1, keepdims=True)
    flat = pictures.reshape(len(pictures), -1) - mean
    back = flat @ components.T @ components + mean
    return back.round().clip(0, 255).astype(np.uint8).reshape(pictures.shape)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--data", required=True, help="folder of photos")
    args = parser.parse_args()
    tokenizer = load_tokenizer("shipped")
    probe = Probe.from_pretrained(model_folder("shipped") / "probe")
    config = tokenizer.config
    numbers, size = config.tokens * config.channels, (config.height, config.width)
    with tempfile.TemporaryDirectory() as cache:
        store = open_store(args.data, "train", size, cache, 1.0)
        train = np.asarray(store.images)
        held_out = open_store(args.data, "val", size, cache, 1.0)
        originals, rebuilt = reconstruct_all(tokenizer, held_out)
        small, side = thumbnail(originals, numbers)
        components = principal_components(train, originals, numbers)
    print(f"{len(originals)} held-out photos, {size[0]} x {size[1]}, {numbers} numbers each")
    print("| | PSNR dB | SSIM | FD |\n|---|---|---|---|")
    real = probe_features(probe, originals)

    def distance(pictures: np.ndarray) -> float:
        return frechet_distance(real, probe_features(probe, pictures))

    rows = {
        f"thumbnail {side} x {side}, enlarged": small,
        f"{numbers} principal components of {2 * len(train):,} training pictures": components,
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
