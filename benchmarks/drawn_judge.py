"""Does a judge of defects learn from generated photos? Real alone, beside real and drawn together.

    python benchmarks/drawn_judge.py --data FOLDER --normal ok --out DIR [--groups manifest.csv]

Photos, of train and val together, fall into --folds by groups, whole. Of each fold's other photos
all good ones and a share of the defective groups are kept (--shares; the smaller within the
larger). The shipped generator of many steps goes on with these alone for --images, then draws
--per-class pictures of every class without near-copies (``softvq.augment``), and judges that
learned from

    real                the kept photos
    real, mirrored      the same with their mirror images: what costs nothing
    real, repeated      the same, of every class as many as with the drawn pictures: likewise
    real and drawn      the same with the drawn pictures
    drawn               the pictures alone

tell defective photos of the fold from good ones: a logistic regression on the eye's features, as a
study's. Area under the curve (AUC), mean of the folds, with 95% intervals of groups drawn anew
(bootstrap); and of the difference to ``real``, the same groups for both. A photo's group is its
``cluster`` in --groups, a table with the columns name and cluster; else the name of its file.

What a stopped run has trained stays: it goes on when the command is repeated.
"""

import argparse
import csv
import shutil
import sys
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from eye_judge import auc

from softvq import images
from softvq.augment import TABLE, augment
from softvq.data import open_store
from softvq.evaluate.features import eye_features
from softvq.evaluate.judges import RIDGE, folds, logistic
from softvq.eye import Eye
from softvq.models import open_tokenizer
from softvq.pipeline import Pipeline
from softvq.recipe import GeneratorRecipe, load_recipe
from softvq.train.generator import train_generator

RECIPE = ("init=shipped-many-step", "train.lr=5e-4", "train.muon_lr=5e-3", "train.batch=16",
          "data.fit=stretch", "train.ema_halflife=500")  # fmt: skip
STEPS = 10  # of two evaluations
RESAMPLED = 1000
WAYS = ("real", "real, mirrored", "real, repeated", "real and drawn", "drawn")


@dataclass
class Photos:
    """All photos: files, classes, groups, features [N, F] of them and of their mirror images."""

    paths: list[Path]
    labels: np.ndarray
    groups: np.ndarray
    features: np.ndarray
    mirrored: np.ndarray


def gather(data: Path, groups: str | None, size: tuple[int, int], cache: Path, eye: Eye) -> Photos:
    table: dict[str, str] = {}
    if groups:
        with (data / groups).open() as file:
            table = {row["name"]: row["cluster"] for row in csv.DictReader(file)}
    paths, labels, features, mirrored = [], [], [], []
    for split in ("train", "val"):
        store = open_store(data, split, size, cache, 1.0, "stretch")
        paths += [store.root / name for name in store.names]
        labels += [store.classes[i] for i in store.labels]
        pictures = np.stack([store.images[i] for i in range(len(store))])
        features.append(eye_features(eye, pictures))
        mirrored.append(eye_features(eye, pictures[:, :, ::-1].copy()))
    named = [table.get(path.stem, path.stem) for path in paths]
    return Photos(
        paths, np.array(labels), np.array(named), np.concatenate(features), np.concatenate(mirrored)
    )


def kept(photos: Photos, of: np.ndarray, normal: str, share: float, seed: int) -> np.ndarray:
    """Which photos of ``of`` there are to learn from, bool [N]."""
    found = of & (photos.labels == normal)
    for name in sorted(set(photos.labels) - {normal}):
        here = of & (photos.labels == name)
        order = np.random.default_rng(seed).permutation(np.unique(photos.groups[here]))
        some = order[: max(1, round(share * len(order)))]
        found |= here & np.isin(photos.groups, some)
    return found


def drawn(
    photos: Photos, of: np.ndarray, out: Path, options: list[str], per_class: int, eye: Eye
) -> tuple[np.ndarray, np.ndarray]:
    """Features and classes of pictures by a generator that learned the photos ``of``."""
    data, run, pictures = out / "photos", out / "run", out / "drawn"
    if not data.is_dir():
        half = out / "photos.partial"
        shutil.rmtree(half, ignore_errors=True)
        for i in np.flatnonzero(of):
            target = half / "train" / photos.labels[i] / f"{i:05d}{photos.paths[i].suffix}"
            target.parent.mkdir(parents=True, exist_ok=True)
            shutil.copyfile(photos.paths[i], target)
        for folder in sorted((half / "train").iterdir()):  # for a validation loss nobody reads
            first = min(folder.iterdir())
            (half / "val" / folder.name).mkdir(parents=True)
            shutil.copyfile(first, half / "val" / folder.name / first.name)
        half.rename(data)
    recipe = load_recipe(GeneratorRecipe, "nested-generator", options)
    recipe.data.source = str(data)
    if not train_generator(recipe, run):
        sys.exit(130)
    pipeline = Pipeline.from_pretrained(run)
    if not (pictures / TABLE).is_file():
        augment(pipeline, data, pictures, per_class, batch=per_class, steps=STEPS)
    files = sorted(pictures.glob("train/*/*.png"))
    seen = np.stack([np.asarray(images.load(path)) for path in files])
    return eye_features(eye, seen), np.array([path.parent.name for path in files])


def repeated(own: np.ndarray, more: np.ndarray) -> np.ndarray:
    """Rows of the labels ``own``, so often that there are as many of each as with ``more``."""
    counts = [(np.flatnonzero(own == name), (more == name).sum()) for name in np.unique(own)]
    return np.concatenate([np.resize(rows, len(rows) + count) for rows, count in counts])


def judged(x: np.ndarray, bad: np.ndarray, asked: np.ndarray) -> np.ndarray:
    """Scores of ``asked`` by a regression on x; features standardised by x, in its directions."""
    centre, spread = x.mean(0), (x.std(0) + 1e-3) * np.sqrt(x.shape[1])
    known = ((x - centre) / spread).astype(np.float64)
    axes = np.linalg.svd(known, full_matrices=False)[2].T
    weight = logistic(known @ axes, bad, RIDGE)
    return ((asked - centre) / spread) @ axes @ weight[:-1] + weight[-1]


def mean_auc(scores: np.ndarray, bad: np.ndarray, fold: np.ndarray, rows: np.ndarray) -> float:
    """Of the photos ``rows``, over the folds that have both kinds."""
    found = []
    for k in np.unique(fold):
        some = rows[fold[rows] == k]
        if 0 < bad[some].sum() < len(some):
            found.append(auc(scores[some], bad[some]))
    return float(np.mean(found))


def interval(values: list[float]) -> str:
    low, high = np.quantile(values, [0.025, 0.975])
    return f"{low:+.3f} to {high:+.3f}" if low < 0 else f"{low:.3f} to {high:.3f}"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--data", required=True, type=Path)
    parser.add_argument("--normal", required=True, help="the class without defects")
    parser.add_argument("--out", required=True, type=Path, help="directory for the runs")
    parser.add_argument("--groups", help="table in --data with columns name and cluster")
    parser.add_argument("--shares", default="0.25,0.5,1", help="of the defective groups")
    parser.add_argument("--folds", type=int, default=2)
    parser.add_argument("--per-class", type=int, default=60, help="pictures drawn of each class")
    parser.add_argument("--images", type=int, default=4000, help="that each generator sees")
    parser.add_argument("--seed", type=int, default=0)
    args = parser.parse_args()
    eye = Eye.shipped()
    config = open_tokenizer("shipped").config
    size = (config.height, config.width)
    photos = gather(args.data, args.groups, size, args.out / "photos", eye)
    bad = photos.labels != args.normal
    strata = np.where(bad, np.unique(photos.labels, return_inverse=True)[1] + 1, 0)
    fold = folds(photos.groups.tolist(), strata, args.seed, args.folds)
    lengths = [f"train.{key}={value}" for key, value in {
        "images": args.images, "evaluate_every": args.images,
        "checkpoint_every": max(1, args.images // 4)}.items()]  # fmt: skip
    options = [*RECIPE, *lengths, f"train.seed={args.seed}"]
    names, groups = np.unique(photos.groups, return_inverse=True)
    random = np.random.default_rng(args.seed)
    members = [np.flatnonzero(groups == g) for g in range(len(names))]
    resamples = [
        np.concatenate([members[g] for g in random.integers(0, len(names), len(names))])
        for _ in range(RESAMPLED)
    ]
    print(f"{len(bad)} photos in {len(names)} groups, {bad.sum()} defective, {args.folds} folds")
    print("| defects kept | judge learned from | pictures | AUC | 95% | less real alone | 95% |")
    print("|---|---|---|---|---|---|---|")
    for share in map(float, args.shares.split(",")):
        scores = {way: np.zeros(len(bad)) for way in WAYS}
        sizes: dict[str, list[int]] = {way: [] for way in WAYS}
        for k in range(args.folds):
            asked = fold == k
            of = kept(photos, ~asked, args.normal, share, args.seed)
            place = args.out / f"fold{k}-{share:g}"
            more, labels = drawn(photos, of, place, options, args.per_class, eye)
            own, told = photos.features[of], bad[of]
            new = labels != args.normal
            again = repeated(photos.labels[of], labels)
            sets = {
                "real": (own, told),
                "real, mirrored": (np.concatenate([own, photos.mirrored[of]]),
                                   np.concatenate([told, told])),
                "real, repeated": (own[again], told[again]),
                "real and drawn": (np.concatenate([own, more]), np.concatenate([told, new])),
                "drawn": (more, new),
            }  # fmt: skip
            for way, (x, y) in sets.items():
                scores[way][asked] = judged(x, y, photos.features[asked])
                sizes[way].append(len(x))
        everything = np.arange(len(bad))
        point = {way: mean_auc(scores[way], bad, fold, everything) for way in WAYS}
        tried = {way: [mean_auc(scores[way], bad, fold, r) for r in resamples] for way in WAYS}
        for way in WAYS:
            gain = [a - b for a, b in zip(tried[way], tried["real"], strict=True)]
            less = f"{point[way] - point['real']:+.3f} | {interval(gain)}"
            print(
                f"| {share:.0%} | {way} | {np.mean(sizes[way]):.0f} | {point[way]:.3f} | "
                f"{interval(tried[way])} | {less if way != WAYS[0] else ' | '} |",
                flush=True,
            )


if __name__ == "__main__":
    main()
