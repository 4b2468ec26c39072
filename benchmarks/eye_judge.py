"""What a logistic regression on the eye's features sees of defects in held-out photos.

    python benchmarks/eye_judge.py FOLDER --normal ok [--groups manifest.csv] [--pixels 64]

FOLDER holds train/ and val/ with a folder for each class. Photos are seen at 224 x 224 pixels, mean
and maximum of the eye's head map; with --pixels they are reduced to that size first. The regression
(defective or not, features standardised) is fitted on train/ alone: its strength by five folds,
in which no group is split, and its threshold where the cross-fitted scores of train/ tell best
(Youden 1950); beside it the regression's own, a probability of one half. Then val/ is looked at
once.
"""

import argparse
import csv
from pathlib import Path

import numpy as np
from PIL import Image

from softvq import images
from softvq.evaluate.features import eye_features
from softvq.evaluate.latents import linear_probe
from softvq.eye import Eye

STRENGTHS = (1e-4, 1e-3, 1e-2, 1e-1)
FOLDS = 5


def gather(folder: Path, pixels: int | None) -> tuple[list[str], list[str], np.ndarray]:
    """Classes, file names and features [N, 2560] of the photos below a split's folder."""
    eye = Eye.shipped()
    paths = sorted(p for p in folder.glob("*/*") if p.suffix.lower() in (".jpg", ".png"))
    found = []
    for path in paths:
        photo = images.load(path)
        if pixels:
            photo = photo.resize((pixels, pixels), Image.Resampling.BICUBIC)
        found.append(eye_features(eye, np.asarray(photo)[None]))
    return [p.parent.name for p in paths], [p.name for p in paths], np.concatenate(found)


def scores(x: np.ndarray, y: np.ndarray, c: float, other: np.ndarray) -> np.ndarray:
    """Log-odds of being defective of ``other``, by a regression fitted to x and y."""
    mean, std = x.mean(0), x.std(0) + 1e-3
    weight = linear_probe((x - mean) / std, y, c)
    logits = weight.logits((other - mean) / std).numpy()
    return logits[:, 1] - logits[:, 0]


def auc(score: np.ndarray, y: np.ndarray) -> float:
    """Share of (defective, sound) pairs in the right order; a tie counts half."""
    bad, good = score[y == 1][:, None], score[y == 0][None]
    return float(((bad > good) + 0.5 * (bad == good)).mean())


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("folder", type=Path)
    parser.add_argument("--normal", required=True, help="the class without defects")
    parser.add_argument(
        "--groups", type=Path, help="CSV with columns name (with or without ending) and cluster"
    )
    parser.add_argument("--pixels", type=int, help="reduce photos to this size first")
    args = parser.parse_args()
    cluster = {}
    if args.groups:
        with args.groups.open(newline="") as file:
            cluster = {Path(row["name"]).stem: row["cluster"] for row in csv.DictReader(file)}
    classes, names, x = gather(args.folder / "train", args.pixels)
    y = np.array([c != args.normal for c in classes]).astype(int)
    group = np.unique([cluster.get(Path(name).stem, name) for name in names], return_inverse=True)[
        1
    ]
    fold = np.random.default_rng(0).permutation(group.max() + 1)[group] % FOLDS

    crossed = {}
    for c in STRENGTHS:
        crossed[c] = np.empty(len(y))
        for k in range(FOLDS):
            crossed[c][fold == k] = scores(x[fold != k], y[fold != k], c, x[fold == k])
        print(f"train, cross-fitted, c = {c:g}: AUC {auc(crossed[c], y):.3f}", flush=True)
    best = max(STRENGTHS, key=lambda c: auc(crossed[c], y))
    steps = np.unique(crossed[best])
    told = [(crossed[best][y == 1] >= t).mean() + (crossed[best][y == 0] < t).mean() for t in steps]
    threshold = steps[int(np.argmax(told))]

    classes, _, other = gather(args.folder / "val", args.pixels)
    bad = np.array([c != args.normal for c in classes]).astype(int)
    found = scores(x, y, best, other)
    print(f"val, c = {best:g}: AUC {auc(found, bad):.3f}")
    for name, at in (("told best in train", threshold), ("probability 0.5", 0.0)):
        flagged = found >= at
        print(
            f"  threshold {name}: {flagged[bad == 1].sum()} of {bad.sum()} defects found, "
            f"{flagged[bad == 0].sum()} of {(bad == 0).sum()} false alarms"
        )


if __name__ == "__main__":
    main()
