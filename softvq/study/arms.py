"""What a study tries: bottlenecks over token counts, which of them stop early, and their recipes.

64 tokens of 32 numbers and 32 tokens of 64 are as many numbers. ``hold`` says what stays the same
while tokens are cut: the ``channels`` of a token, so that numbers are cut too, or the ``floats`` of
a photo, so that tokens grow wider; or both are tried.
"""

import math
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np

from softvq.errors import UserError
from softvq.evaluate.cost import generator_cost, tokenizer_cost
from softvq.evaluate.systems import CLASSES
from softvq.generator.transformer import SiTConfig
from softvq.recipe import TokenizerRecipe, load_recipe
from softvq.study.intervals import mean

HOLDS = ("channels", "floats", "both")
BOTTLENECKS = ("softvq", "kl", "vq", "ae")
PATCHES = 8  # along each side: the work of a photo is then the same at every size
GENTLE = 0.5  # learning rates of what is trained already, as a share of the recipe's
MARGIN_DB = 0.25  # by which one arm must surely be better for another to stop


@dataclass(frozen=True)
class Arm:
    """A tokenizer to try; ``held``: what of it is the same in other arms of its bottleneck."""

    kind: str
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

    def recipe(self, settings: "Settings", images: int, init: Path | None) -> TokenizerRecipe:
        """The shipped recipe with this arm's bottleneck, for photos of the study's size.

        ``init``: the weights that it starts from, None for none.
        """
        base = load_recipe(TokenizerRecipe, "small", [])
        height, width = settings.size
        if height != width or height % PATCHES:
            raise UserError(
                f"--size must be a multiple of {PATCHES}, one number: photos are square"
            )
        model = replace(
            base.model,
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
        warm = images // 20
        train = replace(
            base.train,
            images=images,
            warmup=warm,
            seed=settings.seed,
            ema_halflife=min(base.train.ema_halflife, images // 10),
            log_every=max(base.train.batch, images // 20),
            evaluate_every=images,
            checkpoint_every=max(base.train.batch, images // 4),
        )
        if init is not None:
            train = replace(train, lr=GENTLE * train.lr, muon_lr=GENTLE * train.muon_lr)
        data = replace(base.data, source=settings.data, fit=settings.fit)
        return replace(
            base, data=data, model=model, train=train, init=None if init is None else str(init)
        )

    def bytes(self, codewords: int) -> float:
        """Of a photo's tokens: 16 bits a number, or a codeword's number where tokens are chosen."""
        if self.kind == "vq":
            return self.tokens * math.ceil(math.log2(codewords)) / 8
        return 2 * self.floats


@dataclass(frozen=True)
class Settings:
    """What decides a study's figures; a study of others is another study.

    data: folder of photos.  size: (height, width) that photos are fitted to.  fit: crop | stretch.
    init: the trained tokenizer that arms start from, or "none".
    images: photos that an arm sees in its first rung; None measures this machine and spends
        ``budget`` seconds.
    """

    data: str
    size: tuple[int, int] = (64, 64)
    fit: str = "stretch"
    init: str = "shipped"
    tokens: tuple[int, ...] = (8, 16, 32, 64)
    hold: str = "channels"
    channels: int = 32
    bottlenecks: tuple[str, ...] = ("softvq", "kl", "vq")
    budget: float = 3600.0
    images: int | None = None
    seed: int = 0

    def __post_init__(self) -> None:
        if self.hold not in HOLDS:
            raise UserError(f"--hold '{self.hold}' is none of {', '.join(HOLDS)}")
        for name in self.bottlenecks:
            if name not in BOTTLENECKS:
                raise UserError(f"bottleneck '{name}' is none of {', '.join(BOTTLENECKS)}")
        if not self.tokens or min(self.tokens) < 1:
            raise UserError("--tokens takes whole numbers of 1 or more, with commas")


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
        for kind in settings.bottlenecks
    ]
    # Tokens decide what a generator costs, then numbers.
    return sorted(arms, key=lambda arm: (arm.tokens, arm.floats))


def hopeless(
    arm: Arm,
    others: Sequence[Arm],
    psnr: dict[str, np.ndarray],
    groups: list[str],
) -> tuple[Arm, float] | None:
    """The arm that shows this one to be hopeless, and by how many dB; None while there is hope.

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


def cost(arm: Arm, recipe: TokenizerRecipe) -> dict[str, float]:
    """Parameters of the tokenizer; GFLOPs of encoding, decoding, and of a SiT-XL/1's evaluation."""
    parts = tokenizer_cost(recipe.model)
    drawing = generator_cost(SiTConfig.sized("XL", arm.tokens, arm.channels, CLASSES), 1, 1.0)
    return {
        "parameters": sum(part.parameters for part in parts.values()),
        "encode_gflops": (parts["encoder"].flops + parts["bottleneck"].flops) / 1e9,
        "decode_gflops": parts["decoder"].flops / 1e9,
        "generator_gflops": drawing["network"].flops / 1e9,
    }
