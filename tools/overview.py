"""What the shipped model does, in two pictures.

    python tools/overview.py docs/overview.png docs/worst.png

The first: held-out crops of the built-in photos, of each the one of median quality, from fewer and
fewer tokens, and generated pictures, one class a column. The second: the held-out crops that it
reconstructs worst.
"""

import argparse
import tempfile

import matplotlib

matplotlib.use("Agg")
import matplotlib.pyplot as plt
import numpy as np

from softvq.coding import decode_all, encode_all, reconstruct_all
from softvq.data import open_store
from softvq.evaluate.pixels import psnr_per_image
from softvq.pipeline import Pipeline

SHOWN, DRAWN = 8, 2  # columns, and rows of generated pictures
COUNTS = (64, 16, 4)  # tokens that the crops are shown from


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("overview")
    parser.add_argument("worst")
    args = parser.parse_args()
    pipeline = Pipeline.from_pretrained("shipped")
    config = pipeline.tokenizer.config
    with tempfile.TemporaryDirectory() as cache:
        store = open_store("builtin", "val", (config.height, config.width), cache, 1.0)
        originals, rebuilt = reconstruct_all(pipeline.tokenizer, store)
    quality = psnr_per_image(originals, rebuilt)
    typical = []  # of each photo the crop of median quality
    for label in range(len(store.classes)):
        members = np.flatnonzero(store.labels == label)
        typical.append(members[quality[members].argsort()[len(members) // 2]])
    typical = typical[:: max(1, len(typical) // SHOWN)][:SHOWN]
    latents = encode_all(pipeline.tokenizer, [originals[i] for i in typical])
    photo = f"photo: {originals[0].size:,} values"
    rows = {photo: originals[typical]} | {
        f"from {k} tokens: {k * config.channels:,} numbers": decode_all(
            pipeline.tokenizer, latents[:, :k]
        )
        for k in COUNTS
    }
    classes = pipeline.classes[:: max(1, len(pipeline.classes) // SHOWN)][:SHOWN]
    drawn = pipeline([name for _ in range(DRAWN) for name in classes], guidance=4.0, seed=0)
    for i in range(DRAWN):
        rows[f"generated {i + 1}"] = drawn[i * len(classes) : (i + 1) * len(classes)]
    draw(args.overview, rows, [name.split("_", 1)[-1] for name in classes])
    worst = quality.argsort()[:SHOWN]
    names = [f"{store.classes[store.labels[i]]} {quality[i]:.1f} dB" for i in worst]
    draw(args.worst, {photo: originals[worst], "from all tokens": rebuilt[worst]}, names)


def draw(path: str, rows: dict, names: list[str]) -> None:
    """Rows of pictures, each with its title, and a name below each column."""
    figure, plots = plt.subplots(
        len(rows), SHOWN, figsize=(1.5 * SHOWN, 1.65 * len(rows)), layout="constrained"
    )
    for line, (title, pictures) in zip(plots, rows.items(), strict=True):
        for plot in line:
            plot.axis("off")
        for plot, picture in zip(line, pictures, strict=False):
            plot.imshow(np.asarray(picture))
        line[0].set_title(title, fontsize=8, loc="left")
    for plot, name in zip(plots[-1], names, strict=False):
        name = name.replace("_", " ")
        plot.text(0.5, -0.08, name, transform=plot.transAxes, fontsize=7, ha="center", va="top")
    figure.savefig(path, dpi=110)


if __name__ == "__main__":
    main()
