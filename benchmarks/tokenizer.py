"""What the tokenizer's code saves against the usual way to write it, in one run.

    python benchmarks/tokenizer.py [--batch 8] [--rounds 15] [--peak TFLOPS] [KEY=VALUE ...]

The network is that of the recipe softvq-s-64 at 64 x 64 pixels (ViT-S, patch 16) with 16 tokens, or
what KEY=VALUE makes of it. *plain* is the same network with the same weights, run as the reference
implementation runs it: attention spelled out, float32, [tokens, codewords] matrices stored, the
discriminator at work from the first step on and its losses times 0. The arms of a table take turns,
one call each, so whatever else the machine does meets all of them: ratios are medians over rounds,
with the quartiles. The peak memory of soft assignment is that of ``soft_assignment.py``.

On a GPU it also prints images/s, with and without torch.compile, and the share of the device's
peak that they use (MFU): --peak takes the data sheet's dense bf16 TFLOP/s.
"""

import argparse
import copy
import dataclasses
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from contextlib import AbstractContextManager, nullcontext
from pathlib import Path

import torch
from soft_assignment import plain_entropy_gap
from torch import Tensor, nn
from torch.nn import functional as F

from softvq.evaluate.cost import tokenizer_cost
from softvq.io import save_tensors
from softvq.layers import Attention, full_precision
from softvq.recipe import TokenizerRecipe, load_recipe
from softvq.tokenizer.adversary import LOSSES, Adversary
from softvq.tokenizer.bottleneck import SoftVQ, Tokens, codebook_stats
from softvq.tokenizer.discriminator import FrozenViT
from softvq.tokenizer.terms import AdversaryConfig
from softvq.train.loop import resolve_precision
from softvq.train.optimizers import adamw, average, optimizers
from softvq.train.photos import Batch
from softvq.train.players import Turn
from softvq.train.tokenizer import TokenizerTask

DEVICE = "cuda" if torch.cuda.is_available() else "cpu"
SHAPE = ["model.height=64", "model.width=64", "model.tokens=16"]
OBJECTIVE = ["objective.lpips=0", "objective.perceptual=0.1", "alignment.weight=0"]
# The published weights of the terms beside the loss.
REGULARISED = {"consistency": 4.0, "lecam": 0.001}


class SpelledOut(Attention):
    """softmax(Q K^T / sqrt(d)) V, with the [N, N] weights stored."""

    def forward(self, x: Tensor, angles: Tensor | None = None) -> Tensor:
        assert angles is None
        q, k, v = self.qkv(x).unflatten(-1, (3, self.heads, -1)).permute(2, 0, 3, 1, 4)
        weights = (q @ k.mT * q.shape[-1] ** -0.5).softmax(-1)
        return self.proj((weights @ v).transpose(1, 2).flatten(-2))


class Stored(SoftVQ):
    """The released assignment as its equations read; every [tokens, codewords] matrix is kept."""

    def forward(self, z: Tensor) -> Tokens:
        assert self.l2_norm and self.levels == 1 and self.axis == "tokens" and self.gain is None
        with full_precision(z):
            target = F.normalize(self.split(z.float()), dim=-1)
            codewords = F.normalize(self.embedding, dim=-1)
            logits = target @ codewords.detach().mT
            weights = (logits / self.tau).softmax(-1)
            mixed, nearest = weights @ codewords, logits.argmax(-1, keepdim=True)
            indices = self.join(nearest, z.shape[0]).squeeze(-1)
            tokens = Tokens(self.join(mixed, z.shape[0]), indices=indices)
            if self.training:
                pooled = logits.flatten(0, 1)[None] if self.entropy_pooled else logits
                gap = plain_entropy_gap(pooled / self.entropy_tau)
                tokens.losses["entropy"] = self.entropy_weight * gap
                tokens.stats |= codebook_stats(self.number(indices), self.codewords)
                similarity = F.cosine_similarity(target.detach(), mixed.detach(), dim=-1)
                tokens.stats["soft_cosine"] = similarity.mean()
                tokens.stats["soft_peak"] = weights.detach().amax(-1).mean()
            return tokens


PLAIN: dict[type[nn.Module], type[nn.Module]] = {Attention: SpelledOut, SoftVQ: Stored}


def plainly(model: nn.Module) -> nn.Module:
    """A copy of a model with the same weights and the usual code."""
    model = copy.deepcopy(model)
    for module in model.modules():
        module.__class__ = PLAIN.get(type(module), type(module))
    return model


class AlwaysOn(TokenizerTask):
    """A task whose discriminator works from the first step on, its losses times 0."""

    def __init__(self, task: TokenizerTask, config: AdversaryConfig):
        self.__dict__ |= task.__dict__
        config = dataclasses.replace(config, start=0)
        self.recipe = dataclasses.replace(task.recipe, adversary=config)
        self.adversary = Adversary(config).to(DEVICE)

    def adversarial_term(self, terms: dict[str, Tensor], reconstruction: Tensor) -> Tensor:
        # Not as Adversary.generator_loss: gradients of the discriminator's weights come with it.
        fake = self.adversary.logits(reconstruction, self.adversary.config.augment)
        return 0.0 * LOSSES[self.adversary.config.loss][1](fake)

    def adversary_loss(self, net: nn.Module, batch: Batch, made: Tensor) -> Turn:
        loss, parts = net(batch.pixels, made)
        return Turn(0.0 * loss, parts)


class Step:
    """A training step, as :func:`softvq.train.loop.train` makes it; tasks with one model share it.

    ``net`` is the model, possibly compiled.
    """

    def __init__(self, model: nn.Module, net: nn.Module, recipe: TokenizerRecipe, bf16: bool):
        self.model, self.net, self.config, self.bf16 = model, net, recipe.train, bf16
        self.ema = copy.deepcopy(model).eval().requires_grad_(False)
        self.optimizers = optimizers(model, recipe.train)
        self.rivals: dict[TokenizerTask, torch.optim.Optimizer] = {}

    def __call__(self, task: TokenizerTask, images: Tensor) -> None:
        rows = torch.arange(images.shape[0])
        batch = Batch(images, rows, rows, rows < 0, 0)
        self.model.train()
        with autocast(self.bf16):
            turn = task.loss(self.net, batch)
        self.descend(turn.loss, self.model, self.optimizers)
        if task not in self.rivals:
            weights = [(p, 1e-4) for p in task.adversary.parameters() if p.requires_grad]
            self.rivals[task] = adamw(weights, self.config.weight_decay)
        task.adversary.train()
        self.rivals[task].zero_grad()
        with autocast(self.bf16):
            played = task.adversary_loss(task.adversary, batch, turn.made)
        if played is not None:
            self.descend(played.loss, task.adversary, [self.rivals[task]])
        average(self.ema, self.model, 0.999)

    def descend(
        self, loss: Tensor, part: nn.Module, optimizers: list[torch.optim.Optimizer]
    ) -> None:
        loss.backward()
        norm = nn.utils.clip_grad_norm_(part.parameters(), self.config.clip)
        assert norm.isfinite() and loss.isfinite()
        for optimizer in optimizers:
            optimizer.step()
            optimizer.zero_grad()


def autocast(bf16: bool) -> AbstractContextManager:
    return torch.autocast(DEVICE, torch.bfloat16) if bf16 else nullcontext()


def take_turns(arms: dict[str, Callable[[], object]], rounds: int) -> dict[str, list[float]]:
    """Seconds of each arm in each round; one round before them warms up."""
    times: dict[str, list[float]] = {name: [] for name in arms}
    for _ in range(1 + rounds):
        for name, arm in arms.items():
            start = time.perf_counter()
            arm()
            if DEVICE == "cuda":
                torch.cuda.synchronize()
            times[name].append(time.perf_counter() - start)
    return {name: some[1:] for name, some in times.items()}


def ratio(slow: list[float], fast: list[float]) -> str:
    """Of two arms: the median over rounds, and the quartiles."""
    low, median, high = statistics.quantiles(
        [a / b for a, b in zip(slow, fast, strict=True)], n=4, method="inclusive"
    )
    return f"{median:.2f} ({low:.2f} .. {high:.2f})"


def print_table(title: str, times: dict[str, list[float]], slow: str | None = None) -> None:
    """One line an arm, against ``slow``; without it, each arm against the first."""
    first = next(iter(times))
    other = f"{slow} / this" if slow else f"this / {first}"
    print(f"\n| {title} | ms | {other} |\n|---|---|---|")
    for name, some in times.items():
        ms = 1e3 * statistics.median(some)
        pair = (times[slow], some) if slow else (some, times[first])
        print(f"| {name} | {ms:.1f} | {ratio(*pair)} |", flush=True)


def inference(model: nn.Module, name: str, inputs: Tensor, bf16: bool) -> Callable[[], object]:
    """A call of a tokenizer's method without gradients."""

    def call() -> object:
        with torch.inference_mode(), autocast(bf16):
            return getattr(model, name)(inputs)

    return call


def print_memory() -> None:
    """Peak memory of soft assignment, measured from a small process: a child inherits its peak."""
    print("", flush=True)
    script = Path(__file__).with_name("soft_assignment.py")
    subprocess.run([sys.executable, str(script)], check=True)


def print_gpu(task: TokenizerTask, step: Step, images: Tensor, rounds: int, peak: float) -> None:
    """Images/s in bf16 and the share of the peak, as it is and compiled."""
    model, config = task.model.tokenizer, task.recipe.model
    latents = torch.zeros(images.shape[0], config.tokens, config.channels, device=DEVICE)
    cost = tokenizer_cost(config)
    flops = {
        "encode": cost["encoder"].flops + cost["bottleneck"].flops,
        "decode": cost["decoder"].flops,
        "train step": sum(part.training for part in cost.values()),
    }
    compiled = torch.compile(task.model)
    calls = {name: torch.compile(getattr(model, name)) for name in ("encode", "decode")}
    fast = Step(task.model, compiled, task.recipe, bf16=True)
    print("\n| bf16 | images/s | TFLOP/s | MFU | compiled: images/s | TFLOP/s | MFU |")
    print(7 * "|---" + "|")

    def compiled_call(name: str, inputs: Tensor) -> None:
        with torch.inference_mode(), autocast(True):
            calls[name](inputs)

    for name, inputs in (("encode", images), ("decode", latents)):
        model.eval()
        arms = {
            "as it is": inference(model, name, inputs, bf16=True),
            "compiled": lambda name=name, inputs=inputs: compiled_call(name, inputs),
        }
        print_speeds(name, take_turns(arms, rounds), images.shape[0], flops[name], peak)
    arms = {"as it is": lambda: step(task, images), "compiled": lambda: fast(task, images)}
    times = take_turns(arms, rounds)
    print_speeds("train step", times, images.shape[0], flops["train step"], peak)


def print_speeds(
    name: str, times: dict[str, list[float]], batch: int, flops: int, peak: float
) -> None:
    cells = [name]
    for some in times.values():
        rate = batch / statistics.median(some)
        tera = rate * flops / 1e12
        cells += [f"{rate:.0f}", f"{tera:.1f}", f"{tera / peak:.1%}" if peak else "-"]
    print(f"| {' | '.join(cells)} |", flush=True)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--batch", type=int, default=8)
    parser.add_argument("--rounds", type=int, default=15)
    parser.add_argument("--peak", type=float, default=0.0, help="TFLOP/s of the GPU, for MFU")
    parser.add_argument("overrides", nargs="*", metavar="KEY=VALUE", help="of the recipe")
    args = parser.parse_args()
    gan = ["adversary.weight=0.2", "adversary.discriminator=patchgan", "adversary.consistency=0",
           "adversary.lecam=0"]  # fmt: skip
    settings = [*SHAPE, *OBJECTIVE, *gan, *args.overrides]
    recipe = load_recipe(TokenizerRecipe, "softvq-s-64", settings)
    config = recipe.model
    bf16 = resolve_precision("auto") == "bf16"
    task = TokenizerTask(recipe)
    task.model.to(DEVICE)
    images = torch.rand(args.batch, 3, config.height, config.width, device=DEVICE) * 2 - 1
    print(f"{DEVICE}, {torch.get_num_threads()} threads, batch {args.batch}, {config.height} x "
          f"{config.width} px, patch {config.patch}, {config.tokens} tokens, encoder and decoder "
          f"{config.encoder_width} x {config.encoder_depth}, {config.decoder_width} x "
          f"{config.decoder_depth}; {args.rounds} rounds; ratio: median (quartiles)")  # fmt: skip

    ours = Step(task.model, task.model, recipe, bf16)
    usual = plainly(task.model)
    model, plain = task.model.tokenizer.eval(), usual.tokenizer.eval()
    latents = model.encode(images).latents.detach()
    for name, inputs in (("encode", images), ("decode", latents)):
        arms = {
            "plain": inference(plain, name, inputs, bf16=False),
            "ours, float32": inference(model, name, inputs, bf16=False),
        }
        if bf16:
            arms["ours, bf16"] = inference(model, name, inputs, bf16=True)
        print_table(name, take_turns(arms, args.rounds), slow="plain")

    patchgan = AlwaysOn(task, recipe.adversary)
    step = Step(usual, usual, recipe, bf16=False)
    arms = {"plain": lambda: step(patchgan, images), "ours": lambda: ours(task, images)}
    print_table("train step", take_turns(arms, args.rounds), slow="plain")

    with tempfile.TemporaryDirectory() as folder:
        vit = Path(folder) / "vit.safetensors"
        save_tensors(FrozenViT().state_dict(), vit)  # random weights: time does not depend on them
        dino = dataclasses.replace(recipe.adversary, discriminator="dino", dino=str(vit))
        always_on = {
            "PatchGAN always on": patchgan,
            "PatchGAN, consistency and LeCAM": AlwaysOn(
                task, dataclasses.replace(recipe.adversary, **REGULARISED)
            ),
            "DINO ViT-S/16 always on": AlwaysOn(task, dino),
            "DINO, consistency and LeCAM": AlwaysOn(task, dataclasses.replace(dino, **REGULARISED)),
        }
    tasks = {"ours": task} | always_on
    arms = {name: lambda each=each: ours(each, images) for name, each in tasks.items()}
    print_table("train step before the GAN starts", take_turns(arms, args.rounds))
    if DEVICE == "cuda":
        print_gpu(task, ours, images, args.rounds, args.peak)
    print_memory()


if __name__ == "__main__":
    main()
