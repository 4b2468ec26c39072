"""What makes a generator of many steps learn faster: each way alone, beside today's recipe.

    python benchmarks/faster_training.py --data FOLDER --out DIR [--images 32000] [--seeds 3]

A small network of today's kind (recipe ``nested-generator``, 128 wide, no convolutions) learns the
shipped tokenizer's tokens of --data: as it is, for --images and for twice as many, and with each of
WAYS for --images. ``--count`` pictures are drawn, evenly over the classes, with a SiT's own
defaults; Frechet distance on the eye to all photos of --data. The table has means over the seeds,
ranges, and training images a second of the processor that it ran on, of which pairs say the most. A
way that needs half of the images reaches the second row.

Tokens, teacher and summaries are computed once. A run that was stopped goes on.
"""

import argparse
import json
import statistics
import sys
import time
from dataclasses import asdict, dataclass
from pathlib import Path

import numpy as np
import torch
from few_step import photos_seen
from generators import measures

from softvq.encoding import Views, write_tokens
from softvq.evaluate.features import FeatureSet
from softvq.fingerprint import fingerprint
from softvq.io import write_atomically
from softvq.models import open_teacher, open_tokenizer
from softvq.pipeline import Pipeline
from softvq.recipe import GeneratorRecipe, load_recipe, recipe_yaml
from softvq.tokens import read_tokens
from softvq.train.folder import open_run
from softvq.train.generator import Aim, GeneratorTask, with_summary
from softvq.train.loop import train
from softvq.train.photos import open_photos
from softvq.train.summaries import summaries

SMALL = ("model.width=128", "model.heads=2", "model.pyramid=0", "train.batch=16")
ALIGNED = ("alignment.teacher=eye-7x7", "alignment.weight=0.5", "alignment.block=2",
           "alignment.cache=true", "alignment.hidden=512")  # fmt: skip
WAYS: dict[str, tuple[str, ...]] = {
    "today's recipe": (),
    "AdamW for Muon": ("train.optimizer=adamw",),
    "QK-norm": ("model.qk_norm=true",),
    "value residual": ("model.value_residual=true",),
    "time shift 2": ("model.time_shift=2",),
    "time shift 0.5": ("model.time_shift=0.5",),
    "contrastive 0.05": ("contrast=0.05",),
    "alignment (REPA)": ALIGNED,
    "alignment in the first half": (*ALIGNED, "alignment.images={half}"),
    "summary (REG)": ("model.summary=1",),
    "summary and alignment (REG)": ("model.summary=1", *ALIGNED),
}
TITLES = ("way", "images", "FD (eye)", "precision", "recall", "training images/s")


@dataclass
class Figures:
    """Of one run."""

    fd: float
    precision: float
    recall: float
    rate: float


class Shared:
    """What all runs learn from, computed once."""

    def __init__(self, data: str, out: Path):
        recipe = recipe_of(data, ())
        self.tokenizer = open_tokenizer(recipe.tokenizer)
        config = self.tokenizer.config
        self.size = (config.height, config.width)
        photos, held_out = open_photos(recipe.data, self.size, out / "photos")
        crops = recipe.views, recipe.data.flip, recipe.train.seed
        views = Views(photos, *crops)
        write_tokens(out / "tokens/train", self.tokenizer, photos, *crops)
        write_tokens(out / "tokens/val", self.tokenizer, held_out)
        made_by = fingerprint(self.tokenizer)
        self.kept, self.kept_out = (
            read_tokens(out / "tokens" / split, made_by) for split in ("train", "val")
        )
        shape, device = (1, config.channels), torch.device("cpu")
        seen = views, Views(held_out, 1, recipe.data.flip)
        self.summary = summaries(out / "summaries", shape, *seen, device)
        self.aim = Aim(open_teacher("eye-7x7"), views, out / "teacher")

    def task(self, recipe: GeneratorRecipe) -> GeneratorTask:
        kept, kept_out = self.kept, self.kept_out
        if recipe.model.summary:  # type: ignore[attr-defined]
            kept, kept_out = map(with_summary, (kept, kept_out), self.summary)
        aim = self.aim if recipe.alignment.weight else None
        return Quiet(recipe, self.tokenizer, kept, kept_out, aim)


class Quiet(GeneratorTask):
    """Draws nothing on its way: the figures come at the end."""

    def evaluate(self, model, folder, seen) -> dict[str, float]:
        return {"validation_loss": self.validation_loss(model)}


def recipe_of(data: str, overrides: tuple[str, ...]) -> GeneratorRecipe:
    recipe = load_recipe(GeneratorRecipe, "nested-generator", [*SMALL, *overrides])
    recipe.data.source = data
    return recipe


def measured(
    shared: Shared, real: FeatureSet, overrides: tuple[str, ...], folder: Path, count: int
) -> Figures:
    """Train, draw and measure; or read what was measured before."""
    record = folder / f"figures-{count}.json"
    if not record.is_file():
        recipe = recipe_of("folder", overrides)
        task = shared.task(recipe)
        with open_run(folder, recipe_yaml(recipe), "shared"):
            started = time.process_time()
            if not train(task, recipe.train, folder):
                sys.exit(130)
            rate = recipe.train.images / (time.process_time() - started)
        pipeline = Pipeline.from_pretrained(folder)
        labels = [i % len(pipeline.classes) for i in range(count)]
        drawn = pipeline.decode_uint8(pipeline.generate_latents(labels))
        found = Figures(**measures(real, drawn), rate=rate)
        write_atomically(record, json.dumps(asdict(found), indent=2) + "\n")
    return Figures(**json.loads(record.read_text()))


def row(way: str, seen: int, runs: list[Figures]) -> str:
    def cell(name: str, digits: int) -> str:
        values = [getattr(run, name) for run in runs]
        text = f"{np.mean(values):.{digits}f}"
        if len(values) == 1:
            return text
        return f"{text} ({min(values):.{digits}f} to {max(values):.{digits}f})"

    rate = statistics.median(run.rate for run in runs)
    cells = cell("fd", 0), cell("precision", 3), cell("recall", 3)
    return f"| {way} | {seen:,} | {' | '.join(cells)} | {rate:.0f} |"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--data", required=True, help="folder of photos, in a folder per class")
    parser.add_argument("--out", required=True, help="directory for the runs")
    parser.add_argument("--images", type=int, default=32000, help="images seen by each")
    parser.add_argument("--seeds", type=int, default=3)
    parser.add_argument("--count", type=int, default=260, help="pictures drawn by each")
    parser.add_argument("--ways", help="names, with commas (default: all)")
    args = parser.parse_args()
    out = Path(args.out)
    shared = Shared(args.data, out)
    real = photos_seen(args.data, shared.size, out)
    first = next(iter(WAYS))
    wanted = [first, first, *[way for way in WAYS if way != first]]
    lengths = [args.images, 2 * args.images, *[args.images] * (len(WAYS) - 1)]
    chosen = args.ways.split(",") if args.ways else wanted
    print(f"| {' | '.join(TITLES)} |\n|{'---|' * len(TITLES)}")
    for way, seen in zip(wanted, lengths, strict=True):
        if way not in chosen:
            continue
        runs = []
        for seed in range(args.seeds):
            options = (
                *(option.format(half=seen // 2) for option in WAYS[way]),
                f"train.images={seen}", f"train.seed={seed}", f"train.ema_halflife={seen // 10}",
                f"train.evaluate_every={seen}", f"train.checkpoint_every={seen // 4}",
            )  # fmt: skip
            name = "".join(c if c.isalnum() else "-" for c in way)
            folder = out / f"{name}-{seen}-{seed}"
            runs.append(measured(shared, real, options, folder, args.count))
        print(row(way, seen, runs), flush=True)


if __name__ == "__main__":
    main()
