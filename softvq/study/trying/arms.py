"""What a study tries: bottlenecks over token counts, which of them stop early, and their recipes.

64 tokens of 32 numbers and 32 tokens of 64 are as many numbers. ``hold`` says what stays the same
while tokens are cut: the ``channels`` of a token, so that numbers are cut too, or the ``floats`` of
a photo, so that tokens grow wider; or both are tried.
"""

import math
from collections.abc import Sequence
from dataclasses import dataclass, replace
from functools import cache
from pathlib import Path

import numpy as np

from softvq.evaluate.cost import generator_cost, tokenizer_cost
from softvq.evaluate.intervals import mean
from softvq.evaluate.systems import CLASSES
from softvq.generator.config import SiTConfig
from softvq.recipe import TokenizerRecipe, load_recipe
from softvq.study.records import ArmCost
from softvq.study.settings import PATCHES, Bottleneck, Settings
from softvq.tokenizer import TokenizerConfig

GENTLE = 0.5  # learning rates of what is trained already, as a share of the recipe's
MARGIN_DB = 0.25  # by which one arm must surely be better for another to stop


@cache
def base_recipe() -> TokenizerRecipe:
    """The shipped recipe, from which every arm's differs as little as it can."""
    return load_recipe(TokenizerRecipe, "small", [])


@dataclass(frozen=True)
class Arm:
    """A tokenizer to try; ``held``: what of it is the same in other arms of its bottleneck."""

    kind: Bottleneck
    tokens: int
    channels: int
    held: tuple[str, ...]

    @property
    def name(self) -> str:
        return f"{self.kind}-{self.tokens}x{self.channels}"

    @property
    def floats(self) -> int:
        """Numbers that a photo becomes."""
        return self.tokens * self.channels

    @property
    def bytes(self) -> float:
        """Of a photo's tokens: 16 bits a number, or a codeword's number where tokens are chosen."""
        if self.kind == "vq":
            return self.tokens * math.ceil(math.log2(base_recipe().model.codebook_size)) / 8
        return 2 * self.floats

    def config(self, settings: Settings) -> TokenizerConfig:
        """The shipped model with this arm's bottleneck, for photos of the study's size."""
        height, width = settings.size
        return replace(
            base_recipe().model,
            height=height,
            width=width,
            patch=height // PATCHES,
            tokens=self.tokens,
            channels=self.channels,
            bottleneck=self.kind,
            # VQ's codewords follow the tokens of a trained encoder, at their length.
            vq_update="ema",
            l2_norm=self.kind != "vq",
        )

    def recipe(self, settings: Settings, images: int, init: Path | None) -> TokenizerRecipe:
        """The shipped recipe with this arm's model, for a rung of ``images`` photos.

        ``init``: the weights that it starts from, None for none.
        """
        base = base_recipe()
        train = replace(
            base.train,
            images=images,
            warmup=images // 20,
            seed=settings.seed,
            ema_halflife=min(base.train.ema_halflife, images // 10),
            log_every=max(base.train.batch, images // 20),
            evaluate_every=images,
            checkpoint_every=max(base.train.batch, images // 4),
        )
        if init is not None:
            train = replace(train, lr=GENTLE * train.lr, muon_lr=GENTLE * train.muon_lr)
        return replace(
            base,
            data=replace(base.data, source=settings.data, fit=settings.fit),
            model=self.config(settings),
            train=train,
            init=None if init is None else str(init),
        )

    def cost(self, settings: Settings) -> ArmCost:
        """Counted, not measured."""
        parts = tokenizer_cost(self.config(settings))
        return ArmCost(
            parameters=sum(part.parameters for part in parts.values()),
            encode_gflops=(parts["encoder"].flops + parts["bottleneck"].flops) / 1e9,
            decode_gflops=parts["decoder"].flops / 1e9,
            generator_gflops=generator_gflops(self.tokens, self.channels),
        )


@cache
def generator_gflops(tokens: int, channels: int) -> float:
    """Of one evaluation of a SiT-XL/1."""
    config = SiTConfig.sized("XL", tokens, channels, CLASSES)
    return generator_cost(config, 1, 1.0)["network"].flops / 1e9


def make_arms(settings: Settings) -> list[Arm]:
    """Every arm, the cheapest first. With floats held, all have those of the middle token count."""
    counts = sorted(set(settings.tokens))
    floats = counts[len(counts) // 2] * settings.channels
    shapes: dict[tuple[int, int], list[str]] = {}
    for tokens in counts:
        if settings.hold in ("channels", "both"):
            shapes.setdefault((tokens, settings.channels), []).append("channels")
        if settings.hold in ("floats", "both"):
            shapes.setdefault((tokens, max(1, floats // tokens)), []).append("floats")
    arms = [
        Arm(kind, *shape, tuple(held))
        for shape, held in shapes.items()
        for kind in dict.fromkeys(settings.bottlenecks)
    ]
    # Tokens decide what a generator costs, then numbers.
    return sorted(arms, key=lambda arm: (arm.tokens, arm.floats))


def dominating(
    arm: Arm,
    others: Sequence[Arm],
    psnr: dict[str, np.ndarray],
    groups: list[str],
) -> tuple[Arm, float] | None:
    """The arm that dominates this one the most, and by how many dB; None if none does.

    It has no more tokens and no more numbers, and its PSNR is higher by more than MARGIN_DB with
    confidence: the lower end of the interval of the paired difference over the photos [N].
    """
    found = []
    for other in others:
        cheaper = other.tokens <= arm.tokens and other.floats <= arm.floats
        if other == arm or not cheaper:
            continue
        gap = mean(psnr[other.name] - psnr[arm.name], groups)
        if gap is not None and gap.low is not None and gap.low > MARGIN_DB:
            found.append((gap.value, other))
    if not found:
        return None
    gap_db, best = max(found, key=lambda pair: pair[0])
    return best, gap_db
