"""What the first k tokens are worth, beside thumbnails and principal components of as many numbers.

    python benchmarks/nested.py --tokenizer DIR --data FOLDER .. [--photos 200] [--pca 3000]

Prints a Markdown table over k = 1, 2, 4, .., L for the held-out photos of each folder: mean PSNR in
dB and distance in the eye's features of the rebuilt photos. PCA learns from ``--pca`` training
photos of the first folder, or of --train; with 3,000 it takes minutes, 0 leaves it out.
"""

import argparse
import tempfile
from collections.abc import Callable
from pathlib import Path

import numpy as np

from softvq.coding import reconstruct_all, size_of
from softvq.data import open_store
from softvq.evaluate.baselines import Coded, Components, thumbnail
from softvq.evaluate.pixels import eye_distance, psnr
from softvq.models import open_tokenizer
from softvq.precision import computing
from softvq.quality import lengths_tried
from softvq.tokenizer import Tokenizer
from softvq.tokenizer.perceptual import EyeDistance

Coder = Callable[[np.ndarray, int], Coded]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--tokenizer", required=True)
    parser.add_argument("--data", required=True, nargs="+", help="folders of photos")
    parser.add_argument("--split", default="val")
    parser.add_argument("--photos", type=int, default=10**9, help="at most so many of each folder")
    parser.add_argument("--train", help="folder whose training photos PCA learns from")
    parser.add_argument("--pca", type=int, default=0, help="photos PCA learns from; 0: no PCA")
    args = parser.parse_args()
    tokenizer = open_tokenizer(args.tokenizer)
    size = size_of(tokenizer)
    others: dict[str, Coder] = {"thumbnail": lambda photos, k: thumbnail(photos, k, grey=False)}
    if args.pca:
        train = photos_of(args.train or args.data[0], "train", size, args.pca)
        others["PCA"] = Components(train, most=len(train)).coded
    for folder in args.data:
        table(tokenizer, folder, photos_of(folder, args.split, size, args.photos), others)


def photos_of(folder: str, split: str, size: tuple[int, int], most: int) -> np.ndarray:
    """At most so many photos, evenly spread over all, uint8 [N, H, W, 3]."""
    with tempfile.TemporaryDirectory() as cache:
        store = open_store(folder, split, size, cache, 1.0)
        rows = np.linspace(0, len(store) - 1, min(most, len(store))).astype(int)
        return np.stack([store.images[row] for row in rows])


def table(
    tokenizer: Tokenizer, folder: str, originals: np.ndarray, others: dict[str, Coder]
) -> None:
    """Print the figures of one folder."""
    eye, channels = EyeDistance(), tokenizer.config.channels
    print(f"\n{Path(folder).name}: {len(originals)} photos, {originals.shape[1]} px")
    print(f"| tokens | numbers | PSNR | eye |{''.join(f' {name} | its eye |' for name in others)}")
    print("|---|---|---|---|" + "---|---|" * len(others), flush=True)
    for k in lengths_tried(tokenizer.config.tokens):
        with computing("auto", tokenizer):  # as encode and decode do
            rows = [reconstruct_all(tokenizer, originals, tokens=k)[1]]
        rows += [code(originals, k * channels).rebuilt for code in others.values()]
        cells = [
            f"{psnr(originals, x):.2f} | {eye_distance(originals, x, eye).mean():.3f}" for x in rows
        ]
        print(f"| {k} | {k * channels} | {' | '.join(cells)} |", flush=True)


if __name__ == "__main__":
    main()
