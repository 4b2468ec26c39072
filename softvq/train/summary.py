"""What a training is told by: before it starts, a plan; after its end, what came out."""

import shlex
import time
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import torch

from softvq.data import Store, find_photos
from softvq.device import pick_device
from softvq.encoding import Views
from softvq.errors import UserError
from softvq.fingerprint import fingerprint
from softvq.models import open_tokenizer
from softvq.recipe import GeneratorRecipe, ProbeRecipe, TokenizerRecipe
from softvq.tokens import TokenIndex, TokenSet
from softvq.train.folder import metrics
from softvq.train.generator import Aim, GeneratorTask, open_start, open_teacher
from softvq.train.loop import resolve_precision
from softvq.train.players import Task
from softvq.train.probe import ProbeTask
from softvq.train.tokenizer import TokenizerTask

AnyRecipe = TokenizerRecipe | GeneratorRecipe | ProbeRecipe
TRIAL = 5  # batches of a speed measurement; the first is not counted
PHOTOS = 32  # at most, in each of them


@dataclass
class Result:
    """A finished run: what was trained, the last figures by name, and the command to use it."""

    kind: str
    folder: Path
    images: int
    figures: dict[str, float]
    next: str

    def __str__(self) -> str:
        figures = ", ".join(f"{name.replace('_', ' ')} {x:.4g}" for name, x in self.figures.items())
        return (
            f"the {self.kind} saw {self.images:,} images; on held-out photos: {figures}; it is in "
            f"{self.folder}; next: {self.next}"
        )


def result(recipe: AnyRecipe, folder: Path) -> Result:
    """What the finished run of a recipe in ``folder`` gives its user."""
    out, data = shlex.quote(str(folder)), shlex.quote(recipe.data.source)
    if isinstance(recipe, TokenizerRecipe):
        kind, figure = "tokenizer", "psnr"
        use = f"softvq reconstruct --tokenizer {out} --data {data} --out {out}-pictures"
    elif isinstance(recipe, GeneratorRecipe):
        kind, figure = "generator", "validation_loss"
        use = f"softvq generate --model {out} --out {out}-pictures"
    else:
        kind, figure = "probe", "held_out_accuracy"
        use = f"softvq evaluate reconstruction --features {out} --data {data}"
    last = dict(metrics(folder, figure)[-1])
    return Result(kind, folder, int(last.pop("seen")), last, use)


@dataclass
class Plan:
    """A run that has not begun.

    photos: what was found, in words.  training, held_out: how many of each.  size: height and width
    in pixels.  parameters: of all that learns.  seconds: that training takes here, about, measured
    on a few batches of noise.
    """

    photos: str
    training: int
    held_out: int
    classes: list[str]
    size: tuple[int, int]
    parameters: int
    images: int
    seconds: float

    def __str__(self) -> str:
        height, width = self.size
        minutes = self.seconds / 60
        took = f"{minutes:.1f} min" if minutes < 90 else f"{minutes / 60:.1f} h"
        return (
            f"{self.photos}\n{self.parameters:,} parameters see {self.images:,} images of "
            f"{height} x {width} pixels: about {took} here"
        )


def plan(recipe: AnyRecipe) -> Plan:
    """What a recipe would do here; nothing is written. Raises UserError as its training does."""
    listing, held_out = (find_photos(recipe.data.source, split) for split in ("train", "val"))
    task, size = trial_task(recipe, listing.classes)
    config = recipe.train
    speed = images_per_second(task, resolve_precision(config.precision) == "bf16")
    learning = [p for player in task.players for p in player.module.parameters()]
    return Plan(
        listing.summary(),
        len(listing.names),
        len(held_out.names),
        listing.classes,
        size,
        sum(p.numel() for p in learning if p.requires_grad),
        config.images,
        config.images / speed,
    )


def trial_task(recipe: AnyRecipe, classes: list[str]) -> tuple[Task, tuple[int, int]]:
    """The task of a recipe on noise in place of photos, and the size of its pictures."""
    batch = min(recipe.train.batch, PHOTOS)
    recipe = replace(recipe, train=replace(recipe.train, batch=batch, images=TRIAL * batch))
    if isinstance(recipe, TokenizerRecipe):
        size = recipe.model.height, recipe.model.width
        noise = noise_store(batch, size, recipe.data.margin, classes)
        return TokenizerTask(recipe).on(noise, noise), size
    if isinstance(recipe, ProbeRecipe):
        size = recipe.height, recipe.width
        noise = noise_store(batch, size, recipe.data.margin, classes)
        return ProbeTask(recipe, noise, noise), size
    tokenizer, teacher = open_tokenizer(recipe.tokenizer), open_teacher(recipe.alignment)
    shape = tokenizer.config
    size = shape.height, shape.width
    noise = noise_store(batch, size, recipe.data.margin, classes)
    index = TokenIndex(
        tokenizer=fingerprint(tokenizer), tokens=shape.tokens, channels=shape.channels,
        height=size[0], width=size[1], classes=classes, count=batch, shards={},
    )  # fmt: skip
    latents = torch.randn(batch, shape.tokens, shape.channels)
    tokens = TokenSet(latents, torch.from_numpy(noise.labels), noise.names, classes, index)
    aim = Aim(teacher.to(pick_device()), Views(noise)) if teacher is not None else None
    start = open_start(recipe, tokenizer, classes)
    return GeneratorTask(recipe, tokenizer, tokens, tokens, aim, start), size


def noise_store(count: int, size: tuple[int, int], margin: float, classes: list[str]) -> Store:
    """Decoded photos of noise, in memory."""
    shape = (count, *(int(np.ceil(side * margin)) for side in size), 3)
    pixels = np.random.default_rng(0).integers(0, 256, shape, dtype=np.uint8)
    names = [str(i) for i in range(count)]
    labels = np.arange(count) % max(1, len(classes))
    return Store(pixels, labels, names, classes, [], size, margin, "noise")


def images_per_second(task: Task, bf16: bool) -> float:
    """Of losses and their gradients, on the first batches of a task; nothing learns from them."""
    device = pick_device()
    for player in task.players:
        player.module.to(device).train()
    images, started = 0, time.perf_counter()
    for step, batch in enumerate(task.batches(0, 0, 1)):
        made: Any = None
        for player in task.players:
            with torch.autocast(device.type, torch.bfloat16, bf16):
                turn = player.loss(player.module, batch, made)
            if turn is not None:
                turn.loss.backward()
                turn.loss.item()  # waits for the device
                made = turn.made
        if not step:
            images, started = 0, time.perf_counter()  # the first one warms up
        else:
            images += len(batch.labels)
    if not images:
        raise UserError("no batch to measure the speed on")
    return images / (time.perf_counter() - started)
