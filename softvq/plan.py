"""What a training run will take, on paper: memory, time, money and energy on so many GPUs.

Everything is counted of the recipe's own networks on the meta device (``evaluate.cost``), forward
and backward, with the networks of others that its objective reads. What is not counted is assumed,
and said: the share of a GPU's peak that training reaches, and its links.
"""

import math
from dataclasses import dataclass, replace
from typing import Any

import torch
from torch import nn

from softvq.errors import UserError
from softvq.evaluate.cost import Cost, count, tokenizer_cost, training_cost
from softvq.evaluate.cost_table import aligned
from softvq.eye import Eye
from softvq.models import read_shape
from softvq.options import GPUName
from softvq.recipe import GeneratorRecipe, TokenizerRecipe
from softvq.tokenizer.alignment import EYES, HEADS, EyeTeacher
from softvq.tokenizer.discriminator import DinoDiscriminator, FrozenViT, PatchGAN
from softvq.tokenizer.lpips import LPIPS
from softvq.tokenizer.model import Tokenizer
from softvq.tokenizer.perceptual import EyeDistance
from softvq.tokenizer.terms import AdversaryConfig

Planned = TokenizerRecipe | GeneratorRecipe

FLOAT = 4  # bytes
NODE = 8  # GPUs that are joined by their own links; beyond them the network
NETWORK = 50.0  # GB/s of each GPU's share of it: 400 Gb/s
BACKWARD = 2 / 3  # of a step's work, behind which gradients travel
LEAST = 8  # images of a GPU, below which it is idle most of the time
CLASSES = 1000  # of ImageNet; a table of them is all that depends on it


@dataclass(frozen=True)
class GPU:
    """``tflops``: 10^12 operations per second in bfloat16, without sparsity.  ``memory``: GB.
    ``link``: GB/s to the others of its node, each way.  ``watts``: of the board at work."""

    tflops: float
    memory: float
    link: float
    watts: float


# Of their makers' data sheets.
GPUS: dict[GPUName, GPU] = {
    "a100": GPU(312, 80, 300, 400),
    "h100": GPU(989, 80, 450, 700),
    "h200": GPU(989, 141, 450, 700),
    "l40s": GPU(362, 48, 32, 350),
    "rtx4090": GPU(165, 24, 32, 450),
}


@dataclass(frozen=True)
class Work:
    """What one network does for one image of training.

    learned, frozen: parameters.  flops: forward and backward.  activations: bytes kept between, in
    float32.  share: of the images that it sees.
    """

    name: str
    learned: int
    frozen: int
    flops: float
    activations: int
    share: float = 1.0


@dataclass(frozen=True)
class Run:
    """A run on ``gpus`` GPUs: ``batch`` images a step, ``seconds`` of a step, ``hours`` of all.

    memory: GB of a GPU.  communicated: GB that each sends in a step.  waiting: share of a step in
    which it waits for that.
    """

    gpus: int
    batch: int
    steps: int
    seconds: float
    hours: float
    memory: float
    communicated: float
    waiting: float


def plan(recipe: Planned, parts: list[Work], gpus: int, gpu: GPU, utilisation: float) -> Run:
    """The recipe, whose :func:`work` is ``parts``, on GPUs that reach a share of their peak.

    Where the batch would leave a GPU fewer than LEAST images it is raised to that, which is another
    training: the recipe's rates are for its own batch. Raises UserError for an utilisation outside
    0 to 1.
    """
    if not 0 < utilisation <= 1:
        raise UserError(f"--utilisation is a share from 0 to 1, not {utilisation:g}")
    train = recipe.train
    of_one = math.ceil(train.batch / gpus)
    batch = gpus * max(of_one, min(LEAST, train.batch))
    steps = math.ceil(train.images / batch)
    flops = sum(part.flops * part.share for part in parts) * batch / gpus
    computing = flops / (gpu.tflops * 1e12 * utilisation)
    learned = sum(part.learned for part in parts)
    # A ring sends a sum twice around. Sharded weights are gathered for both passes, and gradients
    # go once.
    sent = (3 if train.parallel == "fsdp" else 2) * FLOAT * learned * (gpus - 1) / gpus
    travelling = sent / 1e9 / (gpu.link if gpus <= NODE else min(gpu.link, NETWORK))
    waiting = max(0.0, travelling - BACKWARD * computing)
    seconds = computing + waiting
    return Run(
        gpus=gpus,
        batch=batch,
        steps=steps,
        seconds=seconds,
        hours=steps * seconds / 3600,
        memory=memory(recipe, parts, batch / gpus, gpus) / 1e9,
        communicated=sent / 1e9,
        waiting=waiting / seconds,
    )


def memory(recipe: Planned, parts: list[Work], images: float, gpus: int = 1) -> float:
    """Bytes that a process needs for ``images`` of each step: weights, gradients, what the
    optimizer keeps, the average, and what is kept of every image for the backward pass."""
    train = recipe.train
    learned = sum(part.learned for part in parts)
    states = 2 if train.optimizer == "adamw" else 1
    held: float = FLOAT * learned * (1 + 1 + states) + FLOAT * parts[0].learned  # and the average
    if train.parallel == "fsdp":
        held /= gpus
    half = 1.0 if train.precision == "fp32" else 0.5  # auto is bfloat16 on GPUs
    held += half * FLOAT * learned if half < 1 else 0  # as products read them
    kept = half * sum(part.activations for part in parts)
    if train.recompute:
        kept /= max(1, _depth(recipe))  # of one block at a time, and the inputs of all
    at_once = math.ceil(images / train.accumulate)
    frozen = FLOAT * sum(part.frozen for part in parts)
    return held + frozen + at_once * kept


def _depth(recipe: Planned) -> int:
    model: Any = recipe.model
    return int(getattr(model, "depth", 0) or model.encoder_depth + model.decoder_depth)


# ---- what is computed ----


def work(recipe: Planned) -> list[Work]:
    """What each network of a recipe does for an image; what is trained comes first.

    Raises UserError for a generator whose tokenizer is not there.
    """
    if isinstance(recipe, GeneratorRecipe):
        return _generator(recipe)
    return [_tokenizer(recipe), *_terms(recipe), *_alignment(recipe)]


def _tokenizer(recipe: TokenizerRecipe) -> Work:
    parts = tokenizer_cost(recipe.model)
    with torch.device("meta"):
        learned = sum(p.numel() for p in Tokenizer(recipe.model).parameters())
    decoder_only = recipe.trainable == "decoder"
    flops = sum(
        part.flops if decoder_only and name != "decoder" else part.training
        for name, part in parts.items()
    )
    kept = sum(
        part.activations for name, part in parts.items() if name == "decoder" or not decoder_only
    )
    if decoder_only:
        decoder = parts["decoder"].parameters
        return Work("tokenizer", decoder, learned - decoder, flops, kept)
    return Work("tokenizer", learned, 0, flops, kept)


def _terms(recipe: TokenizerRecipe) -> list[Work]:
    """The networks of the objective. A gradient that only passes through costs a forward pass."""
    model, objective, adversary = recipe.model, recipe.objective, recipe.adversary
    found = []
    with torch.device("meta"):
        pair = [torch.empty(1, 3, model.height, model.width) for _ in range(2)]
        pair[1].requires_grad_(True)
        looked = []
        if objective.lpips:
            looked.append(("LPIPS", count(LPIPS(), *pair)))
        if objective.eye:
            looked.append(("eye", count(EyeDistance(Eye()), *pair)))
        for name, cost in looked:  # of both pictures forward, of one back
            found.append(Work(name, 0, cost.parameters, 1.5 * cost.flops, cost.activations // 2))
        if adversary.weight:
            share = 1 - min(1.0, adversary.start / recipe.train.images)
            found.append(replace(_adversary(adversary, pair[1]), share=share))
    return found


def _alignment(recipe: TokenizerRecipe) -> list[Work]:
    """The frozen teacher, an eye or as large as DINOv2-L, and the head that learns beside it."""
    model, settings = recipe.model, recipe.alignment
    if not settings.weight:
        return []
    if settings.teacher in EYES:
        eye = EyeTeacher(EYES[settings.teacher])
        name, seen = f"teacher ({settings.teacher})", (eye.patches, eye.width)
        looked = count(eye, torch.empty(1, 3, model.height, model.width))
    else:
        name, seen = "teacher (as DINOv2-L)", (256, 1024)
        with torch.device("meta"):
            vit = _Features(FrozenViT(1024, 24, 16, 14, 16))
            looked = count(vit, torch.empty(1, 3, model.height, model.width))
    with torch.device("meta"):
        head = HEADS[settings.scheme](settings.hidden, (model.tokens, model.channels), seen)
        learned = count(head.train(), torch.empty(1, model.tokens, model.channels))
    return [
        Work(name, 0, looked.parameters, looked.flops, 0),
        Work("alignment head", learned.parameters, 0, learned.training, learned.activations),
    ]


class _Features(nn.Module):
    """What is read of a frozen transformer, as a module that can be counted."""

    def __init__(self, vit: FrozenViT):
        super().__init__()
        self.vit = vit

    def forward(self, images: torch.Tensor) -> torch.Tensor:
        return self.vit.features(images)[-1]


def _adversary(config: AdversaryConfig, picture: torch.Tensor) -> Work:
    """It judges reconstructions for the tokenizer, forward and back; then learns from both sides,
    and from both once more where its answers are to be consistent."""
    passes = 4 if config.consistency else 2
    if config.discriminator == "patchgan":
        cost = count(PatchGAN(config.width, config.depth), picture)
        judging = 2 * cost.flops + passes * cost.training
        return Work("adversary", cost.parameters, 0, judging, (1 + passes) * cost.activations)
    vit = FrozenViT()
    frozen = count(_Features(vit), picture)
    heads = DinoDiscriminator(vit).heads
    wide = torch.empty(8, vit.width, vit.grid.rows * vit.grid.columns)  # they normalise eight
    each = [count(head.train(), wide) for head in heads]
    flops_of_heads = sum(cost.flops for cost in each) / 8
    flops = 2 * (frozen.flops + flops_of_heads) + passes * (frozen.flops + 3 * flops_of_heads)
    learned = sum(cost.parameters for cost in each)
    kept = frozen.activations + (1 + passes) * sum(cost.activations for cost in each) // 8
    return Work("adversary", learned, frozen.parameters, flops, kept)


def _generator(recipe: GeneratorRecipe) -> list[Work]:
    """The generator. Tokens are made before training; that is not counted."""
    tokenizer = read_shape(recipe.tokenizer, "tokenizer")
    shape = replace(tokenizer, tokens=min(recipe.tokens or tokenizer.tokens, tokenizer.tokens))
    config: Any = recipe.config(shape, CLASSES)
    cost: Cost = training_cost(config)
    return [Work(recipe.family, cost.parameters, 0, cost.training, cost.activations)]


# ---- as a table ----


def table(parts: list[Work], runs: list[Run], gpu: GPU, price: float, currency: str) -> str:
    """What each network does, and the run on each number of GPUs, as lines of text."""
    rows = [["for each image", "M learned", "M frozen", "GFLOPs", "MB kept, fp32"]]
    for part in parts:
        seen = f", {part.share:.0%} of the images" if part.share < 1 else ""
        rows.append([
            part.name + seen, f"{part.learned / 1e6:,.1f}", f"{part.frozen / 1e6:,.1f}",
            f"{part.flops / 1e9:,.1f}", f"{part.activations / 1e6:,.1f}",
        ])  # fmt: skip
    titles = ["GPUs", "batch", "steps", "s a step", "GB each", "GB sent", "waiting", "hours", "kWh"]
    titles += [currency] if price else []
    table_of_runs = [titles]
    for run in runs:
        cells = [f"{run.gpus:,}", f"{run.batch:,}", f"{run.steps:,}", f"{run.seconds:.3f}"]
        fits = "" if run.memory <= 0.9 * gpu.memory else " (too much)"
        cells += [f"{run.memory:.1f}{fits}", f"{run.communicated:.2f}", f"{run.waiting:.0%}"]
        cells += [f"{run.hours:,.1f}", f"{kilowatt_hours(run, gpu):,.0f}"]
        table_of_runs.append(cells + ([f"{price * run.gpus * run.hours:,.0f}"] if price else []))
    return f"{aligned(rows)}\n\n{aligned(table_of_runs)}"


def kilowatt_hours(run: Run, gpu: GPU) -> float:
    """Of the boards alone; a machine room draws a third to a half more."""
    return run.gpus * run.hours * gpu.watts / 1000
