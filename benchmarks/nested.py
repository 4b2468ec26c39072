"""What the first k tokens are worth, beside thumbnails and principal components of as many numbers.

    python benchmarks/nested.py --tokenizer DIR --data FOLDER [--train FOLDER] [--pca 6000]

Prints a Markdown table over k = 1, 2, 4, .., L: mean PSNR in dB and distance in the eye's
features of the rebuilt held-out photos. PCA learns from ``--pca`` training photos and takes
minutes; 0 leaves it out.
"""

import argparse
import tempfile

import numpy as np

from softvq.coding import reconstruct_all
from softvq.data import open_store
from softvq.evaluate.baselines import coded
from softvq.evaluate.pixels import eye_distance, psnr
from softvq.models import open_tokenizer
from softvq.quality import lengths_tried
from softvq.tokenizer.perceptual import EyeDistance


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--tokenizer", required=True)
    parser.add_argument("--data", required=True, help="folder of photos")
    parser.add_argument("--split", default="val")
    parser.add_argument("--train", help="folder whose training photos PCA learns from; --data")
    parser.add_argument("--pca", type=int, default=0, help="photos PCA learns from; 0: no PCA")
    args = parser.parse_args()
    tokenizer = open_tokenizer(args.tokenizer)
    config = tokenizer.config
    size = (config.height, config.width)
    with tempfile.TemporaryDirectory() as cache:
        held_out = open_store(args.data, args.split, size, cache, 1.0)
        originals = np.stack([np.asarray(picture) for picture in held_out.images])
        train = originals[:1]
        if args.pca:
            train = np.asarray(
                open_store(args.train or args.data, "train", size, cache, 1.0).images
            )
        network = EyeDistance()
        print(f"{len(originals)} photos, {size[0]} x {size[1]}")
        print("| tokens | numbers | PSNR | eye | thumbnail | its eye | PCA | its eye |")
        print("|---|---|---|---|---|---|---|---|", flush=True)
        for k in lengths_tried(config.tokens):
            numbers = k * config.channels
            rows = [reconstruct_all(tokenizer, held_out, tokens=k)[1]]
            for kind in ("thumbnail", "pca"):
                if kind == "pca" and not args.pca:
                    continue
                rows.append(coded(kind, train, originals, 0, numbers, False, args.pca).rebuilt)
            cells = [
                f"{psnr(originals, x):.2f} | {eye_distance(originals, x, network).mean():.3f}"
                for x in rows
            ]
            print(f"| {k} | {numbers} | {' | '.join(cells)} |", flush=True)


if __name__ == "__main__":
    main()
