"""One, two and four evaluations beside the many-step generator that they were made of.

    python benchmarks/few_step.py --data FOLDER --out DIR [--init MODEL] [--count 2000]

Trains the recipe ``few-step`` from --init (with --rules, once for every rule), draws --count
pictures with every seed, evenly over the classes, by the many-step generator with its own defaults
and by the few-step one in 4, 2 and 1 evaluations, and prints a Markdown table: Frechet distance on
the eye to all photos of --data, and over that of the many-step generator with the same seed;
precision and recall; how far the pictures are from the many-step generator's of the same noise
(mean absolute error of the tokens, in deviations). Means over the seeds, and ranges.

Then pictures a second of the whole pipeline, taking turns, beside the many-step generator in plain
float32; with --light, a tokenizer of the same tokens and another decoder, by that one too. Beside
it ``DIR/grid.png``: the same noise by many, 4, 2 and 1 evaluations.

What a stopped run has drawn and trained stays: it goes on when the command is repeated.
"""

import argparse
import json
import sys
import time
from dataclasses import asdict, dataclass
from pathlib import Path

import numpy as np
import torch

from softvq import images
from softvq.data import fixed_batches, open_store
from softvq.evaluate.features import FeatureSet, frechet_distances, load_network, set_measures
from softvq.evaluate.statistics import Statistics
from softvq.io import load_tensors, save_tensors, write_atomically
from softvq.models import open_tokenizer, tokenizer_beside
from softvq.pipeline import Pipeline
from softvq.recipe import GeneratorRecipe, load_recipe
from softvq.train.generator import train_generator

STEPS = (4, 2, 1)
SHOWN = 10
TITLES = ("drawn by", "evaluations", "FD (eye)", "over many steps", "precision", "recall",
          "from the many-step")  # fmt: skip
CHUNK = 256  # pictures whose pixels are in memory at a time


@dataclass
class Figures:
    """Of the pictures of one generator, number of steps and seed."""

    fd: float
    precision: float
    recall: float
    apart: float = 0.0
    over: float = 1.0


class Drawings:
    """What was drawn and measured: a folder, from which a stopped run goes on."""

    def __init__(self, folder: Path, real: FeatureSet, labels: list[int]):
        self.folder, self.real, self.labels = folder, real, labels

    def latents(self, name: str, pipeline: Pipeline, seed: int, steps: int | None) -> torch.Tensor:
        """Normalised [N, L, C], float32."""
        path = self.folder / f"{name}-{seed}-{len(self.labels)}.safetensors"
        if not path.is_file():
            options = {} if steps is None else {"steps": steps}
            drawn = pipeline.generate_latents(self.labels, seed=seed, **options)
            save_tensors({"latents": pipeline.tokenizer.normalize(drawn).float()}, path)
        return load_tensors(path)["latents"]

    def figures(
        self,
        name: str,
        pipeline: Pipeline,
        seed: int,
        steps: int | None,
        many: "Run | None",
        tokens: int | None = None,
    ) -> "Run":
        latents = self.latents(name, pipeline, seed, steps)[:, :tokens]
        first = f"-first{tokens}" if tokens else ""
        path = self.folder / f"{name}-{seed}-{len(self.labels)}{first}.json"
        if not path.is_file():
            features = FeatureSet(self.real.network)
            for some in latents.split(CHUNK):
                features.add(pipeline.decode_uint8(pipeline.tokenizer.denormalize(some)))
            fd = frechet_distances(self.real.statistics, features)["fd"]
            shares = set_measures(self.real, features)
            found = Figures(fd, shares["precision"], shares["recall"])
            if many is not None:
                found.apart = (latents - many.latents[:, :tokens]).abs().mean().item()
                found.over = fd / many.figures.fd
            write_atomically(path, json.dumps(asdict(found), indent=2) + "\n")
        return Run(latents, Figures(**json.loads(path.read_text())))


@dataclass
class Run:
    latents: torch.Tensor
    figures: Figures


def photos_seen(data: str, size: tuple[int, int], out: Path) -> FeatureSet:
    """The eye's features of all photos, computed once."""
    path, network = out / "photos.safetensors", load_network("eye")
    if not path.is_file():
        stores = [open_store(data, kind, size, out / "photos", 1.0) for kind in ("train", "val")]
        pictures = (images.to_uint8(x) for store in stores for x, _ in fixed_batches(store, 64))
        save_tensors({"pool": FeatureSet.of(network, pictures).all("pool")}, path)
    pool = load_tensors(path)["pool"]
    return FeatureSet(network, True, {"pool": Statistics().add(pool)}, {"pool": [pool]})


def trained(args: argparse.Namespace, rule: str) -> Path:
    """The folder of a few-step generator, trained unless it is there."""
    folder = Path(args.out) / rule
    recipe = load_recipe(GeneratorRecipe, "few-step", [f"few_step.rule={rule}", *args.overrides])
    recipe.data.source, recipe.init = args.data, args.init
    recipe.tokenizer = tokenizer_beside(args.init) or recipe.tokenizer
    if not train_generator(recipe, folder):
        sys.exit(130)
    return folder


def row(title: str, evaluations: int, runs: list[Run]) -> str:
    """Means over the seeds, and the range where there are several."""

    def cell(name: str, digits: int) -> str:
        values = [getattr(run.figures, name) for run in runs]
        text = f"{np.mean(values):.{digits}f}"
        if len(values) == 1:
            return text
        return f"{text} ({min(values):.{digits}f} to {max(values):.{digits}f})"

    cells = [cell("fd", 1), cell("over", 3), cell("precision", 3), cell("recall", 3),
             cell("apart", 3)]  # fmt: skip
    return f"| {title} | {evaluations} | {' | '.join(cells)} |"


def race(many: Pipeline, few: Pipeline, args: argparse.Namespace) -> None:
    """Print pictures a second of every way, in turns; medians over the rounds."""
    labels = [i % len(many.classes) for i in range(args.race)]
    decoders = {"": many.tokenizer}
    if args.light:
        decoders[", light decoder"] = open_tokenizer(args.light)
    ways = [("many steps", 40, many, "", "fp32"), ("many steps", 40, many, "", "auto")]
    ways += [
        ("few steps" + light, steps, few, light, precision)
        for light in decoders for steps in STEPS for precision in ("auto", "bf16")
    ]  # fmt: skip
    rates: list[list[float]] = [[] for _ in ways]
    for _ in range(args.rounds):
        for (_, evaluations, pipeline, light, precision), found in zip(ways, rates, strict=True):
            pipeline.tokenizer, pipeline.precision = decoders[light], precision
            options = {"steps": evaluations} if pipeline is few else {}
            start = time.perf_counter()
            pipeline(labels, **options)
            found.append(len(labels) / (time.perf_counter() - start))
    print("\n| drawn by | evaluations | precision | pictures/s | times the first |")
    print("|---|---|---|---|---|")
    first = float(np.median(rates[0]))
    for (title, evaluations, _, _, precision), found in zip(ways, rates, strict=True):
        rate = float(np.median(found))
        print(f"| {title} | {evaluations} | {precision} | {rate:.2f} | {rate / first:.2f} |")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--data", required=True, help="folder of photos, in a folder per class")
    parser.add_argument("--out", required=True, help="directory for the runs")
    parser.add_argument("--init", default="shipped-many-step", help="the many-step generator")
    parser.add_argument("--count", type=int, default=2000, help="pictures drawn by each")
    parser.add_argument("--seeds", type=int, default=3, help="of the noise")
    parser.add_argument("--rules", default="step", help="of few_step.rule, with commas")
    parser.add_argument("--precision", default="bf16", help="of the pictures that are measured")
    parser.add_argument("--tokens", default="", help="also keep the first so many, with commas")
    parser.add_argument("--light", help="tokenizer with another decoder, for the race")
    parser.add_argument("--race", type=int, default=16, help="pictures of each turn")
    parser.add_argument("--rounds", type=int, default=3, help="of the race; 0 for none")
    parser.add_argument("overrides", nargs="*", help="values of the recipe, as key=value")
    args = parser.parse_args()
    out = Path(args.out)
    many = Pipeline.from_pretrained(args.init)
    config = many.tokenizer.config
    size = (config.height, config.width)
    real = photos_seen(args.data, size, out)
    labels = [i % len(many.classes) for i in range(args.count)]
    drawings = Drawings(out / "drawn", real, labels)
    print(f"| {' | '.join(TITLES)} |\n|{'---|' * len(TITLES)}")
    many.precision = args.precision
    reference = [drawings.figures("many", many, seed, None, None) for seed in range(args.seeds)]
    print(row("many steps", 40, reference), flush=True)
    for tokens in map(int, filter(None, args.tokens.split(","))):
        runs = [
            drawings.figures("many", many, seed, None, first, tokens)
            for seed, first in enumerate(reference)
        ]
        print(row(f"many steps, the first {tokens} tokens kept", 40, runs), flush=True)
    shown, few = [reference[0]], many
    for rule in args.rules.split(","):
        few = Pipeline.from_pretrained(trained(args, rule))
        few.precision = args.precision
        for steps in STEPS:
            runs = [
                drawings.figures(f"{rule}-{steps}", few, seed, steps, first)
                for seed, first in enumerate(reference)
            ]
            shown.append(runs[0])
            print(row(rule, steps, runs), flush=True)
    latents = torch.cat([run.latents[:SHOWN] for run in shown])
    drawn = many.decode_uint8(many.tokenizer.denormalize(latents))
    images.save_png(images.grid(drawn, SHOWN), out / "grid.png")
    if args.rounds:
        race(many, few, args)


if __name__ == "__main__":
    main()
