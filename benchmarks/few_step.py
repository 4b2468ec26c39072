"""One, two and four evaluations beside the many-step generator that they were made of.

    python benchmarks/few_step.py --data FOLDER --out DIR [--init MODEL] [--count 2000]

Trains the recipe ``few-step`` from --init once for every seed (and, with --rules, for every rule),
draws --count pictures, evenly over the classes, by the many-step generator with its own defaults
and by each few-step one in 1, 2 and 4 evaluations, and prints a Markdown table: Frechet distance on
the eye and on the shipped probe to all photos of --data, precision and recall on the eye, how far
the pictures are from the many-step generator's of the same noise (mean absolute error of the
tokens, in deviations), and pictures a second of the whole pipeline. Ranges are over the seeds. A
run that was stopped goes on when the command is repeated. Beside it ``DIR/grid.png``: the same
noise in 1, 2, 4 and many evaluations.
"""

import argparse
import json
import sys
import time
from pathlib import Path
from typing import Any

import numpy as np
import torch

from softvq import images
from softvq.data import fixed_batches, open_store
from softvq.evaluate.features import FeatureSet, frechet_distances, load_network, set_measures
from softvq.io import write_atomically
from softvq.models import tokenizer_beside
from softvq.pipeline import Pipeline
from softvq.recipe import GeneratorRecipe, load_recipe
from softvq.train.generator import train_generator

STEPS = (1, 2, 4)
SHOWN = 10
TITLES = ("drawn by", "evaluations", "FD (eye)", "FD (probe)", "precision", "recall",
          "from the many-step", "pictures/s")  # fmt: skip


def trained(args: argparse.Namespace, rule: str, seed: int) -> Path:
    """The folder of a few-step generator, trained unless it is there."""
    folder = Path(args.out) / f"{rule}-{seed}"
    overrides = [f"train.seed={seed}", f"few_step.rule={rule}", *args.overrides]
    recipe = load_recipe(GeneratorRecipe, "few-step", overrides)
    recipe.data.source, recipe.init = args.data, args.init
    recipe.tokenizer = tokenizer_beside(args.init) or recipe.tokenizer
    if not train_generator(recipe, folder):
        sys.exit(130)
    return folder


def measured(
    pipeline: Pipeline, labels: list[int], real: list[FeatureSet], seed: int, **options: Any
) -> tuple[dict[str, float], torch.Tensor, np.ndarray]:
    """Figures of drawn pictures, their latents and pixels."""
    start = time.perf_counter()
    latents = pipeline.generate_latents(labels, seed=seed, **options)
    drawn = pipeline.decode_uint8(latents)
    found = {"rate": len(labels) / (time.perf_counter() - start)}
    for name, reference in zip(("eye", "probe"), real, strict=True):
        features = FeatureSet(reference.network).add(drawn)
        found[f"fd_{name}"] = frechet_distances(reference.statistics, features)["fd"]
        if name == "eye":
            shares = set_measures(reference, features)
            found |= {key: shares[key] for key in ("precision", "recall")}
    return found, latents, drawn


def row(title: str, evaluations: int, some: list[dict[str, float]]) -> str:
    """Means over the seeds, and the range where there are several."""

    def cell(name: str, digits: int) -> str:
        values = [each[name] for each in some]
        text = f"{np.mean(values):.{digits}f}"
        if len(values) == 1:
            return text
        return f"{text} ({min(values):.{digits}f} to {max(values):.{digits}f})"

    cells = [cell("fd_eye", 2), cell("fd_probe", 2), cell("precision", 3), cell("recall", 3),
             cell("apart", 3), cell("rate", 1)]  # fmt: skip
    return f"| {title} | {evaluations} | {' | '.join(cells)} |"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--data", required=True, help="folder of photos, in a folder per class")
    parser.add_argument("--out", required=True, help="directory for the runs")
    parser.add_argument("--init", default="shipped", help="the many-step generator")
    parser.add_argument("--count", type=int, default=2000, help="pictures drawn by each")
    parser.add_argument("--seeds", type=int, default=3)
    parser.add_argument("--rules", default="step", help="of few_step.rule, with commas")
    parser.add_argument("overrides", nargs="*", help="values of the recipe, as key=value")
    args = parser.parse_args()
    out = Path(args.out)
    many = Pipeline.from_pretrained(args.init)
    config, classes = many.tokenizer.config, many.classes
    labels = [i % len(classes) for i in range(args.count)]
    size = (config.height, config.width)
    stores = [open_store(args.data, kind, size, out / "photos", 1.0) for kind in ("train", "val")]
    networks = [load_network("eye"), load_network("shipped")]
    real = [
        FeatureSet.of(n, (images.to_uint8(x) for s in stores for x, _ in fixed_batches(s, 64)))
        for n in networks
    ]
    print(f"| {' | '.join(TITLES)} |\n|{'---|' * len(TITLES)}")
    seeds, grid = range(args.seeds), []
    reference: dict[int, torch.Tensor] = {}
    rows: list[dict[str, float]] = []
    for seed in seeds:
        found, reference[seed], drawn = measured(many, labels, real, seed)
        rows.append(found | {"apart": 0.0})
        if not seed:
            grid = [drawn[:SHOWN]]
    print(row("many steps", 40, rows), flush=True)
    for rule in args.rules.split(","):
        runs = [Pipeline.from_pretrained(trained(args, rule, seed)) for seed in seeds]
        for steps in STEPS:
            rows = []
            for seed, pipeline in zip(seeds, runs, strict=True):
                record = out / f"{rule}-{seed}" / f"figures-{steps}-{args.count}.json"
                found, latents, drawn = measured(pipeline, labels, real, seed, steps=steps)
                apart = many.tokenizer.normalize(latents) - many.tokenizer.normalize(
                    reference[seed]
                )
                rows.append(found | {"apart": apart.abs().mean().item()})
                write_atomically(record, json.dumps(rows[-1], indent=2) + "\n")
                if not seed:
                    grid.append(drawn[:SHOWN])
            print(row(rule, steps, rows), flush=True)
    images.save_png(images.grid(np.concatenate(grid), SHOWN, 2), out / "grid.png")


if __name__ == "__main__":
    main()
