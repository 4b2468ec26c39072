"""Drafts of fewer tokens: what they cost in Frechet distance, and what they save.

    python benchmarks/drafts.py --data FOLDER --out DIR --nested RUN [--model MODEL] [--count 500]

RUN is a generator that learned several numbers of tokens (``model.nested=true``), made of MODEL,
which draws all tokens alone. A table of --count pictures with each of --seeds, evenly over the
classes, with the generators' own defaults: all tokens by either; for each of --tokens the first k
kept of all that MODEL draws, and k drawn by RUN, which computes no others; photos rebuilt from the
first k, which is what a perfect generator of k tokens would reach. Frechet distance on the eye to
all photos of --data, precision, recall, and the processor's seconds for a picture's tokens and for
its decoding. The last column is how like drafts are to what RUN draws of the same noise in all
tokens: PSNR in dB, of both at the draft's tokens.
"""

import argparse
import time
from pathlib import Path

import numpy as np
import torch
from few_step import photos_seen
from generators import measures
from torch import Tensor

from softvq.coding import encode_all
from softvq.data import open_store
from softvq.evaluate.features import FeatureSet
from softvq.evaluate.pixels import psnr
from softvq.pipeline import Pipeline

TITLES = ("tokens", "drawn", "FD (eye)", "precision", "recall", "s for tokens", "s to decode",
          "like all, dB")  # fmt: skip


class Measure:
    """What is measured with each seed."""

    def __init__(self, real: FeatureSet):
        self.real, self.rows = real, []

    def add(self, pixels: np.ndarray, drawing: float, decoding: float, alike: float) -> None:
        found, count = measures(self.real, pixels), len(pixels)
        self.rows.append((*found.values(), drawing / count, decoding / count, alike))

    def row(self, tokens: int, way: str) -> str:
        fd = [row[0] for row in self.rows]
        rest = np.mean(self.rows, axis=0)[1:]
        spread = f"{np.mean(fd):.0f} ({min(fd):.0f} to {max(fd):.0f})"
        cells = [f"{rest[0]:.3f}", f"{rest[1]:.3f}", *(f"{x:.3f}" for x in rest[2:4])]
        cells.append("" if np.isnan(rest[4]) else f"{rest[4]:.1f}")
        return f"| {tokens} | {way} | {spread} | {' | '.join(cells)} |"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--data", required=True, help="folder of photos, in a folder per class")
    parser.add_argument("--out", required=True, type=Path, help="directory for features of photos")
    parser.add_argument("--nested", required=True, help="generator of several numbers of tokens")
    parser.add_argument("--model", default="shipped-many-step", help="generator of all tokens")
    parser.add_argument("--count", type=int, default=500)
    parser.add_argument("--seeds", type=int, default=3)
    parser.add_argument("--tokens", default="32,16,8")
    parser.add_argument("--precision", default="bf16")
    args = parser.parse_args()
    models = {"all": args.model, "nested": args.nested}
    ways = {name: Pipeline.from_pretrained(model) for name, model in models.items()}
    for pipeline in ways.values():
        pipeline.precision = args.precision
    tokenizer = ways["all"].tokenizer
    config = tokenizer.config
    size = (config.height, config.width)
    real = photos_seen(args.data, size, args.out)
    labels = [i % len(ways["all"].classes) for i in range(args.count)]
    counts = [config.tokens, *map(int, args.tokens.split(","))]
    found = {(k, way): Measure(real) for k in counts for way in ("kept", "drawn", "photos")}

    def timed(call) -> tuple:
        start = time.process_time()
        result = call()
        return result, time.process_time() - start

    def decoded(latents: Tensor) -> tuple[np.ndarray, float]:
        return timed(lambda: ways["all"].decode_uint8(latents))

    for seed in range(args.seeds):
        whole, cost = timed(lambda s=seed: ways["all"].generate_latents(labels, seed=s))
        full = None
        for k in counts:
            pixels, seconds = decoded(whole[:, :k])
            found[k, "kept"].add(pixels, cost, seconds, float("nan"))
            draft, less = timed(
                lambda s=seed, k=k: ways["nested"].generate_latents(labels, seed=s, tokens=k)
            )
            full = draft if full is None else full
            pixels, seconds = decoded(draft)
            alike = psnr(pixels, decoded(full[:, :k])[0]) if k < config.tokens else float("nan")
            found[k, "drawn"].add(pixels, less, seconds, alike)
    photos = [
        encode_all(tokenizer, [store.images[i] for i in range(len(store))])
        for store in (
            open_store(args.data, kind, size, args.out / "photos", 1.0) for kind in ("train", "val")
        )
    ]
    latents = tokenizer.denormalize(torch.cat(photos).double())
    for k in counts:
        pixels, seconds = decoded(latents[:, :k])
        found[k, "photos"].add(pixels, 0.0, seconds, float("nan"))
    print(f"| {' | '.join(TITLES)} |\n|{'---|' * len(TITLES)}")
    names = {"kept": "all tokens, the first kept", "drawn": "these alone, nested generator",
             "photos": "photos, rebuilt"}  # fmt: skip
    for (k, way), measure in found.items():
        print(measure.row(k, names[way]))


if __name__ == "__main__":
    main()
