"""The picture at the top of the README, made by the shipped model.

    python benchmarks/overview.py docs/overview.png

Held-out crops of the built-in photos, their reconstructions from 512 numbers each, and generated
pictures, one class a column.
"""

import argparse
import tempfile

import matplotlib

matplotlib.use("Agg")
import matplotlib.pyplot as plt
import numpy as np

from softvq import images
from softvq.data import fixed_batches, open_store
from softvq.pipeline import Pipeline

SHOWN, DRAWN = 10, 3  # columns, and rows of generated pictures


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("out")
    args = parser.parse_args()
    pipeline = Pipeline.from_pretrained("shipped")
    config = pipeline.tokenizer.config
    with tempfile.TemporaryDirectory() as cache:
        store = open_store("builtin", "val", (config.height, config.width), cache, 1.0)
        pixels, _ = next(fixed_batches(store, SHOWN))
    classes = pipeline.classes[:SHOWN]
    drawn = pipeline([name for _ in range(DRAWN) for name in classes], guidance=2.0, seed=0)
    rows = {
        f"photo: {config.height * config.width * 3:,} values": images.to_pil(pixels),
        f"from {config.tokens * config.channels} numbers": images.to_pil(
            pipeline.tokenizer.reconstruct(pixels)
        ),
    } | {
        f"generated {i + 1}": drawn[i * len(classes) : (i + 1) * len(classes)] for i in range(DRAWN)
    }
    figure, plots = plt.subplots(
        len(rows), SHOWN, figsize=(1.1 * SHOWN, 1.2 * len(rows)), layout="constrained"
    )
    for line, (name, pictures) in zip(plots, rows.items(), strict=True):
        for plot in line:
            plot.axis("off")
        for plot, picture in zip(line, pictures, strict=False):
            plot.imshow(np.asarray(picture))
        line[0].set_title(name, fontsize=8, loc="left")
    for plot, name in zip(plots[-1], classes, strict=False):
        plot.text(0.5, -0.08, name.replace("_", " "), transform=plot.transAxes, fontsize=7,
                  ha="center", va="top")  # fmt: skip
    figure.savefig(args.out, dpi=110)


if __name__ == "__main__":
    main()
