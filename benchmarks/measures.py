"""How long the measures take, and what memory a large set costs.

    python benchmarks/measures.py [--images 10000] [--side 256] [--dimensions 2048]

Prints a Markdown table: pixel measures and the FID Inception (random weights) per picture,
distances per set of that many images, and the growth of memory while statistics of two sets are
gathered. Features are random numbers: the time does not depend on them.
"""

import argparse
import resource
import time
from collections.abc import Callable

import numpy as np
import torch

from softvq.evaluate import frechet_distance, kernel_distance, precision_recall, psnr, ssim
from softvq.evaluate.inception import Inception, preprocess_tf
from softvq.evaluate.statistics import Statistics

BATCH = 64


def seconds(fn: Callable[[], object]) -> float:
    start = time.perf_counter()
    fn()
    return time.perf_counter() - start


def megabytes() -> float:
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--images", type=int, default=10_000)
    parser.add_argument("--side", type=int, default=256, help="pixels of a picture")
    parser.add_argument("--dimensions", type=int, default=2048, help="of the features")
    args = parser.parse_args()
    draws = np.random.default_rng(0)
    features = draws.standard_normal((2, BATCH, args.dimensions), np.float32)
    x, y = Statistics(), Statistics()

    def gather() -> None:
        for _ in range(args.images // BATCH):
            x.add(features[0] * draws.random())
            y.add(features[1] * draws.random())

    before = megabytes()
    rows = {"statistics, ms each": 1e3 * seconds(gather) / (2 * args.images)}
    rows["statistics of both sets, MB more"] = megabytes() - before
    a, b = draws.integers(0, 256, (2, 16, args.side, args.side, 3), np.uint8)
    network, pictures = Inception().eval(), torch.from_numpy(a).movedim(3, 1)
    with torch.inference_mode():
        for name, fn in (
            (f"PSNR, {args.side} px", lambda: psnr(a, b)),
            (f"SSIM, {args.side} px", lambda: ssim(a, b)),
            ("Inception", lambda: network(preprocess_tf(pictures))),
        ):
            rows[f"{name}, ms each"] = 1e3 * seconds(fn) / len(a)
    rows["Frechet distance of both, s"] = seconds(lambda: frechet_distance(x, y))
    n = min(args.images, 5000)
    sets = draws.standard_normal((2, n, args.dimensions), np.float32)
    rows[f"kernel distance, {n} images, s"] = seconds(lambda: kernel_distance(*sets))
    rows[f"precision and recall, {n} images, s"] = seconds(lambda: precision_recall(*sets))
    print(
        f"{torch.get_num_threads()} threads, {args.images:,} images of {args.dimensions} features"
    )
    print("| measure | |\n|---|---|")
    for name, value in rows.items():
        print(f"| {name} | {value:.3g} |")


if __name__ == "__main__":
    main()
