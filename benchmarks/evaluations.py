"""Quality against evaluations and against seconds a picture, of many steps and of few.

    python benchmarks/evaluations.py --data FOLDER --out DIR [--many MODEL] [--few MODEL]

Draws --count pictures with every seed, evenly over the classes, with each family's defaults but for
the steps of WAYS, and prints a Markdown table: Frechet distance on the eye to all photos of --data,
mean and range over the seeds; and seconds of the processor for a picture, decoder and all, one
thread, 16 pictures at a time, median of --rounds in which the ways take turns. ``DIR/figure.svg``
shows both.

What a stopped run has drawn stays: it goes on when the command is repeated.
"""

import argparse
import time
from pathlib import Path

import matplotlib
import numpy as np
import torch
from few_step import Drawings, photos_seen

from softvq.pipeline import Pipeline

matplotlib.use("svg")
import matplotlib.pyplot as plt
from matplotlib.ticker import LogLocator

# Of each generator: steps, and evaluations that these are where guidance takes a second one.
WAYS = {"many": {5: 10, 10: 20, 20: 40}, "few": {1: 1, 2: 2, 4: 4}}
TITLES = ("drawn by", "steps", "evaluations", "FD (eye)", "s a picture")
RACE = 16


def draw_figure(found: dict[str, list[tuple[int, float, list[float]]]], path: Path) -> None:
    """FD, with its range over the seeds, against evaluations and against seconds."""
    plt.rcParams["svg.fonttype"] = "none"
    figure, axes = plt.subplots(1, 2, figsize=(8, 3.2), sharey=True, layout="constrained")
    for axis, at, label in zip(axes, (0, 1), ("evaluations", "seconds a picture"), strict=True):
        for name, marker in (("many", "o-"), ("few", "s-")):
            x = [way[at] for way in found[name]]
            fd = np.array([way[2] for way in found[name]])
            middle = fd.mean(1)
            spread = np.abs(np.stack([fd.min(1), fd.max(1)]) - middle)
            axis.errorbar(x, middle, spread, fmt=marker, capsize=3, label=f"{name} steps")
        axis.set_xscale("log")
        axis.set_xlabel(label)
        axis.xaxis.set_major_locator(LogLocator(subs=(1, 2, 5)))
        axis.xaxis.set_major_formatter("{x:g}")
        axis.minorticks_off()
        axis.grid(alpha=0.3)
    axes[0].set_ylabel("Fréchet distance (eye)")
    axes[0].legend(frameon=False)
    figure.savefig(path, metadata={"Date": None})


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--data", required=True, help="folder of photos, in a folder per class")
    parser.add_argument("--out", required=True, type=Path, help="directory for what is drawn")
    parser.add_argument("--many", default="shipped-many-step")
    parser.add_argument("--few", default="shipped")
    parser.add_argument("--count", type=int, default=260, help="pictures drawn by each")
    parser.add_argument("--seeds", type=int, default=3, help="of the noise")
    parser.add_argument("--rounds", type=int, default=3, help="of the times")
    args = parser.parse_args()
    torch.set_num_threads(1)
    pipelines = {"many": Pipeline.from_pretrained(args.many),
                 "few": Pipeline.from_pretrained(args.few)}  # fmt: skip
    config = pipelines["few"].tokenizer.config
    real = photos_seen(args.data, (config.height, config.width), args.out)
    labels = [i % len(pipelines["few"].classes) for i in range(args.count)]
    drawings = Drawings(args.out / "drawn", real, labels)
    ways = [(name, steps) for name, some in WAYS.items() for steps in some]
    fd = {
        (name, steps): [
            drawings.figures(f"{name}-{steps}", pipelines[name], seed, steps, None).figures.fd
            for seed in range(args.seeds)
        ]
        for name, steps in ways
    }
    seconds: dict[tuple[str, int], list[float]] = {way: [] for way in ways}
    for _ in range(args.rounds):
        for name, steps in ways:
            start = time.process_time()
            pipelines[name](labels[:RACE], steps=steps)
            seconds[name, steps].append((time.process_time() - start) / RACE)
    print(f"| {' | '.join(TITLES)} |\n|{'---|' * len(TITLES)}")
    found: dict[str, list[tuple[int, float, list[float]]]] = {name: [] for name in WAYS}
    for name, steps in ways:
        evaluations, took = WAYS[name][steps], float(np.median(seconds[name, steps]))
        each = fd[name, steps]
        text = f"{np.mean(each):.1f} ({min(each):.1f} to {max(each):.1f})"
        print(f"| {name} steps | {steps} | {evaluations} | {text} | {took:.2f} |")
        found[name].append((evaluations, took, each))
    draw_figure(found, args.out / "figure.svg")


if __name__ == "__main__":
    main()
