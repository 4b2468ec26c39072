"""Train and held-out curves of a run in one picture.

    python tools/plot_training.py RUN OUT.png

RUN is a run's folder, or one with its metrics.jsonl. A tokenizer's run gives PSNR, a generator's
run its loss, a probe's its accuracy.
"""

import argparse
import json
from pathlib import Path

import matplotlib

matplotlib.use("Agg")
import matplotlib.pyplot as plt

CURVES = {  # held-out metric: (training metric, axis)
    "psnr": ("train_psnr", "PSNR, dB"),
    "validation_loss": ("loss", "velocity loss"),
    "held_out_accuracy": ("accuracy", "accuracy"),
}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("run", type=Path)
    parser.add_argument("out", type=Path)
    args = parser.parse_args()
    lines = [json.loads(line) for line in (args.run / "metrics.jsonl").open()]
    held_out, (training, axis) = next(
        (name, curve) for name, curve in CURVES.items() if any(name in line for line in lines)
    )
    figure, plot = plt.subplots(figsize=(6.4, 3.6), layout="constrained")
    for name, label, style in (
        (training, "training crops, current weights", "-"),
        (held_out, "held-out photos, averaged weights", "o-"),
    ):
        points = [(line["seen"], line[name]) for line in lines if name in line]
        plot.plot(*zip(*points, strict=True), style, label=label, markersize=4)
    plot.set(xlabel="images seen", ylabel=axis)
    plot.grid(alpha=0.3)
    plot.legend()
    figure.savefig(args.out, dpi=150)


if __name__ == "__main__":
    main()
