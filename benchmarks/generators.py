"""SiT, DiT and MAR on equal terms: the shipped tokenizer's tokens, parameters, images seen, seed.

    python benchmarks/generators.py --data FOLDER --out DIR [--images 40000] [--count 1000]

Trains the recipes ``sit-tiny``, ``dit-tiny`` and ``mar-tiny``, draws ``--count`` pictures, evenly
over the classes, with each family's default options, and prints a Markdown table. Frechet distance,
precision and recall are on the features of the shipped probe, against all photos of --data, those
held out too, each as it is; the same for every row. The last row has as many photos through the
tokenizer and back: what a perfect generator of tokens would reach. ``DIR/NAME.png`` shows every
class. A run that was stopped goes on when the command is repeated.
"""

import argparse
import json
import statistics
import sys
import time
from pathlib import Path

import numpy as np
import torch

from softvq import images
from softvq.data import Store, fixed_batches, open_store
from softvq.evaluate.features import FeatureSet, frechet_distances, load_network, set_measures
from softvq.generator import transformer
from softvq.generator.families import family_of
from softvq.io import write_atomically
from softvq.pipeline import Pipeline
from softvq.recipe import GeneratorRecipe, load_recipe
from softvq.tokenizer import vit
from softvq.train.generator import train_generator

RECIPES = ("sit-tiny", "dit-tiny", "mar-tiny")
SHOWN = 6  # pictures of each class in a grid
TITLES = (
    "generator", "M parameters", "training images/s", "drawn by", "evaluations per image",
    "sampling images/s", "FD", "precision", "recall",
)  # fmt: skip


def evaluations(pipeline: Pipeline, label: str) -> str:
    """Network evaluations for one image: of the transformer and, if it has one, of the head."""
    net = pipeline.generator
    blocks = (transformer.Block, vit.Block)
    first = next(module for module in net.modules() if isinstance(module, blocks))
    head = getattr(net, "head", None)
    counts = {part: 0 for part in (first, head) if part is not None}

    def count(module, args, output) -> None:
        counts[module] += len(output)

    handles = [part.register_forward_hook(count) for part in counts]
    pipeline.generate_latents([label])
    for handle in handles:
        handle.remove()
    return f"{counts[first]}" + (f" + {counts[head]} of the head" if head else "")


def measures(real: FeatureSet, drawn: np.ndarray) -> dict[str, float]:
    """FD, precision and recall of pictures, uint8 [N, H, W, 3]."""
    features = FeatureSet(real.network).add(drawn)
    found = frechet_distances(real.statistics, features) | set_measures(real, features)
    return {name: found[name] for name in ("fd", "precision", "recall")}


def whole_photos(source: str, size: tuple[int, int], cache: Path) -> list[Store]:
    return [open_store(source, split, size, cache, 1.0) for split in ("train", "val")]


def figures(folder: Path, real: FeatureSet, count: int, picture: Path) -> dict[str, float | str]:
    """What the table says of a trained pipeline; ``picture`` gets its classes."""
    pipeline = Pipeline.from_pretrained(folder)
    names = pipeline.classes
    labels = [names[i % len(names)] for i in range(count)]
    options = family_of(pipeline.generator).options
    steps = options["steps"] or pipeline.generator.config.tokens
    start = time.perf_counter()
    drawn = pipeline.decode_uint8(pipeline.generate_latents(labels))
    seconds = time.perf_counter() - start
    rows = drawn[: SHOWN * len(names)].reshape(-1, len(names), *drawn.shape[1:]).swapaxes(0, 1)
    images.save_png(images.grid(rows.reshape(-1, *drawn.shape[1:]), len(rows[0]), 2), picture)
    lines = [json.loads(line) for line in (folder / "metrics.jsonl").read_text().splitlines()]
    rates = [line["images_per_second"] for line in lines if "images_per_second" in line]
    parameters = sum(p.numel() for p in pipeline.generator.parameters())
    return {
        "parameters": parameters / 1e6,
        "training": statistics.median(rates),
        "drawn_by": f"{options['sampler']}, {steps} steps, guidance {options['guidance']}",
        "evaluations": evaluations(pipeline, names[0]),
        "sampling": count / seconds,
    } | measures(real, drawn)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--data", required=True, help="folder of photos, in a folder per class")
    parser.add_argument("--out", required=True, help="directory for the runs")
    parser.add_argument("--images", type=int, default=40_000, help="images seen by each")
    parser.add_argument("--count", type=int, default=1000, help="pictures drawn by each")
    parser.add_argument("--recipes", default=",".join(RECIPES), help="which (default: all three)")
    args = parser.parse_args()
    out = Path(args.out)
    network = load_network("shipped")
    pipeline = Pipeline.from_pretrained("shipped")
    tokenizer = pipeline.tokenizer
    stores = whole_photos(
        args.data, (tokenizer.config.height, tokenizer.config.width), out / "photos"
    )
    batches = (images.to_uint8(x) for store in stores for x, _ in fixed_batches(store, 64))
    real = FeatureSet.of(network, batches)
    photos = sum(map(len, stores))
    print(
        f"{args.images:,} images seen, {args.count:,} drawn, against {photos:,} photos; "
        f"{torch.get_num_threads()} threads, torch {torch.__version__}"
    )
    print(f"| {' | '.join(TITLES)} |\n|{'---|' * len(TITLES)}")
    for name in args.recipes.split(","):
        lengths = [f"train.images={args.images}", f"train.evaluate_every={args.images}"]
        recipe = load_recipe(GeneratorRecipe, name, lengths)
        recipe.data.source = args.data
        if not train_generator(recipe, out / name):
            sys.exit(130)
        record = out / name / f"figures-{args.count}.json"
        if not record.is_file():
            found = figures(out / name, real, args.count, out / f"{name}.png")
            write_atomically(record, json.dumps(found, indent=2) + "\n")
        row = json.loads(record.read_text())
        print(
            f"| {name} | {row['parameters']:.2f} | {row['training']:.0f} | {row['drawn_by']} | "
            f"{row['evaluations']} | {row['sampling']:.1f} | {row['fd']:.2f} | "
            f"{row['precision']:.3f} | {row['recall']:.3f} |",
            flush=True,
        )
    rebuilt = np.concatenate(
        [images.to_uint8(tokenizer.reconstruct(x)) for s in stores for x, _ in fixed_batches(s, 64)]
    )
    chosen = np.linspace(0, photos - 1, min(args.count, photos)).astype(int)
    row = measures(real, rebuilt[chosen])
    print(
        f"| photos through the tokenizer | | | | | | {row['fd']:.2f} | {row['precision']:.3f} | "
        f"{row['recall']:.3f} |"
    )


if __name__ == "__main__":
    main()
