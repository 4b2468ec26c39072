"""Everything that fixes a generator: the shape of each family, and its alignment in training.

Needs no torch, so that recipes are read and explained in an instant. A new family is a config here,
with an entry in CONFIGS, and an entry of GENERATORS in :mod:`softvq.generator.families`.
"""

import math
from collections.abc import Callable
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, ClassVar, Literal, Self

from softvq.checks import check_fields
from softvq.errors import UserError
from softvq.tokenizer.terms import AlignmentConfig

if TYPE_CHECKING:
    from softvq.generator.diffusion import Diffusion
    from softvq.generator.process import Process

TimeLaw = Literal["uniform", "lognormal"]
MOST_TIMESTEPS = 100_000
FEWEST = 8  # tokens that a nested generator draws


class Sized:
    """A config of published sizes, by their names; the smallest is for tests."""

    SIZES: ClassVar[dict[str, dict[str, int]]]
    time_law: ClassVar[TimeLaw]  # how training times are drawn where nothing else is said

    @classmethod
    def sized(cls, size: str, tokens: int, channels: int, num_classes: int, **others: Any) -> Self:
        """A size of SIZES for these tokens; ``others`` are further fields. Raises UserError."""
        if size not in cls.SIZES:
            raise UserError(f"generator: size '{size}' is none of {', '.join(cls.SIZES)}")
        family: Callable[..., Self] = cls
        return family(tokens, channels, num_classes, **cls.SIZES[size], **others)


@dataclass(frozen=True)
class TransformerConfig(Sized):
    """Shape of a SiT or a DiT. Raises UserError if the fields do not fit together."""

    SIZES: ClassVar[dict[str, dict[str, int]]] = {
        "tiny": {"width": 64, "depth": 2, "heads": 2},
        "S": {"width": 384, "depth": 12, "heads": 6},
        "B": {"width": 768, "depth": 12, "heads": 12},
        "L": {"width": 1024, "depth": 24, "heads": 16},
        "XL": {"width": 1152, "depth": 28, "heads": 16},
    }

    tokens: int
    """Positions L of the latents [B, L, C] that it works on."""
    channels: int
    """Channels C of the latents."""
    num_classes: int
    """Labels are 0 .. num_classes - 1, and num_classes is the null class; 0 makes an unconditional
    model, which knows the null class only."""
    width: int
    """Width of the transformer."""
    depth: int
    """Blocks of the transformer."""
    heads: int
    """Attention heads of each block."""
    mlp_ratio: float = 4.0
    """Width of each block's MLP, over that of the transformer."""
    qk_norm: bool = False
    """Put a norm on each head's queries and keys."""
    label_dropout: float = 0.1
    """Probability with which training replaces a label by the null class, for guidance."""
    patch: int | None = None
    """Null: latents are sequences [B, L, C], one token per position. Else they are maps
    [B, C, H, W] with L = H * W, one token per patch x patch positions."""
    rows: int | None = None
    """Rows H of a map; null for a square one."""
    picture: bool = False
    """The tokens are a picture's spectrum (of network spectral), and the transformer's tokens are
    patches of that picture."""
    pyramid: int = 0
    """Channels of the convolutions that lead from the picture's pixels to the transformer and back;
    0: its patches are taken as they are."""
    norm: Literal["layer", "rms"] = "layer"
    """LayerNorm or RMSNorm."""
    mlp: Literal["gelu", "swiglu"] = "gelu"
    """Two layers with a GELU between them, or SwiGLU."""
    rotary: bool = False
    """Turn queries and keys by their positions, beside the fixed positions."""
    value_residual: bool = False
    """Mix the values of every block's attention with those of the first block's."""
    nested: bool = False
    """Learn to draw the first k tokens alone as well, for k = L, L / 2, .. down to 8, with the same
    weights: drafts that cost less."""
    summary: int = 0
    """Further tokens that hold the eye's features of the whole picture: drawn with its own, and
    left out of what is decoded. 0 for none."""
    tokenizer: str | None = None
    """Fingerprint of the tokenizer whose tokens it learned, null if not known."""

    def __post_init__(self) -> None:
        check_fields(
            self,
            "generator: ",
            above_0=(
                *("tokens", "channels", "width", "depth", "heads"),
                *("mlp_ratio", "patch", "rows"),
            ),
            not_below_0=("num_classes", "pyramid", "summary"),
            shares=("label_dropout",),
        )
        if self.summary and self.patch is not None:
            raise UserError("generator: a summary is beside tokens, not on a map; set patch=null")
        if self.nested and (self.patch is not None or self.rotary):
            raise UserError(
                "generator: nested draws the first of a sequence; set patch=null and rotary=false"
            )
        if self.pyramid and not self.picture:
            raise UserError("generator: a pyramid stands on a picture; set picture=true")
        if self.width % 2 or self.width % self.heads:
            raise UserError(
                f"generator: width {self.width} must be even and divisible by heads {self.heads}"
            )
        if self.picture and self.patch is not None:
            raise UserError("generator: a picture has patches of its own; set patch=null")
        axes = 2 if self.patch or self.picture else 1
        if self.rotary and self.width // self.heads % (2 * axes):
            raise UserError(
                f"generator: rotary positions need heads of {2 * axes}n channels, "
                f"got {self.width // self.heads}"
            )
        if self.patch is None:
            return
        rows, columns = self.latent_shape[1:]
        if rows * columns != self.tokens or rows % self.patch or columns % self.patch:
            raise UserError(
                f"generator: {self.tokens} tokens are no map of {rows} rows that patch "
                f"{self.patch} divides; give rows"
            )

    @property
    def counts(self) -> tuple[int, ...]:
        """The numbers of tokens that it draws, the largest first."""
        halves = [self.tokens >> i for i in range(self.tokens.bit_length())]
        return (self.tokens, *(k for k in halves[1:] if self.nested and k >= FEWEST))

    @property
    def latent_shape(self) -> tuple[int, ...]:
        """Of one image's latents: (L, C), or (C, H, W) with a patch; a summary's are among L."""
        if self.patch is None:
            return self.tokens + self.summary, self.channels
        rows = self.rows or math.isqrt(self.tokens)
        return self.channels, rows, self.tokens // rows

    @property
    def grid(self) -> tuple[int, int]:
        """Rows and columns of transformer tokens; a sequence is one row."""
        if self.picture:
            from softvq.generator.picture import picture_grid

            return picture_grid(self.tokens, self.channels)
        if self.patch is None:
            return 1, self.tokens
        _, rows, columns = self.latent_shape
        return rows // self.patch, columns // self.patch

    @property
    def out_channels(self) -> int:
        """Channels of a prediction."""
        return self.channels

    @property
    def process(self) -> "Process":
        """What the network's predictions mean, for losses and samplers."""
        raise NotImplementedError


@dataclass(frozen=True)
class SiTConfig(TransformerConfig):
    """Shape of a SiT (Ma et al. 2024), and what it learns."""

    time_law: ClassVar[TimeLaw] = "lognormal"

    interpolant: Literal["linear", "cosine"] = "linear"
    """The way from data to noise: straight, or along a quarter of a circle."""
    target: Literal["v", "eps", "x0"] = "v"
    """What the network predicts: the velocity, the noise, or the data."""
    time_shift: float = 1.0
    """Move the times of training and of sampling, t to s t / (1 + (s - 1) t): towards noise if
    above 1, which tokens of many channels ask for (Esser et al. 2024), towards data if below."""

    def __post_init__(self) -> None:
        super().__post_init__()
        check_fields(self, "generator: ", above_0=("time_shift",))

    @property
    def process(self) -> "Process":
        from softvq.generator.process import PROCESSES

        return PROCESSES[self.interpolant](self.target, shift=self.time_shift)


@dataclass(frozen=True)
class DiTConfig(TransformerConfig):
    """Shape of a DiT (Peebles & Xie 2022), and its diffusion."""

    time_law: ClassVar[TimeLaw] = "uniform"

    target: Literal["v", "eps", "x0"] = "eps"
    """What the network predicts: the velocity, the noise, or the data."""
    schedule: Literal["linear", "cosine"] = "linear"
    """How noise grows over the timesteps."""
    timesteps: int = 1000
    """Steps of the diffusion."""
    learn_variance: bool = True
    """Predict the variance of each step too, in as many channels again."""

    def __post_init__(self) -> None:
        super().__post_init__()
        if not 1 <= self.timesteps <= MOST_TIMESTEPS:
            raise UserError(
                f"generator: timesteps must be in 1 .. {MOST_TIMESTEPS:,}, got {self.timesteps}"
            )
        _ = self.process  # which checks that the schedule has so few

    @property
    def out_channels(self) -> int:
        return 2 * self.channels if self.learn_variance else self.channels

    @property
    def process(self) -> "Diffusion":
        from softvq.generator.diffusion import Diffusion

        return Diffusion(self.target, self.schedule, self.timesteps)


@dataclass(frozen=True)
class FlowMapConfig(TransformerConfig):
    """Shape of a generator of few steps: a SiT of straight lines that predicts mean velocities."""

    time_law: ClassVar[TimeLaw] = "uniform"

    most_guidance: float = 4.0
    """Largest guidance scale that it is told in training; 1 is no guidance."""

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.most_guidance < 1:
            raise UserError(f"generator: most_guidance must be 1 or more, got {self.most_guidance}")

    @property
    def process(self) -> "Process":
        from softvq.generator.process import LINEAR

        return LINEAR


@dataclass(frozen=True)
class MARConfig(Sized):
    """Shape of a masked autoregressive generator. UserError if the fields do not fit together."""

    time_law: ClassVar[TimeLaw] = "lognormal"
    SIZES: ClassVar[dict[str, dict[str, int]]] = {
        "tiny": {"width": 64, "depth": 2, "heads": 2, "head_width": 64, "head_depth": 2},
        "B": {"width": 768, "depth": 12, "heads": 12, "head_width": 1024, "head_depth": 6},
        "L": {"width": 1024, "depth": 16, "heads": 16, "head_width": 1280, "head_depth": 8},
        "H": {"width": 1280, "depth": 20, "heads": 16, "head_width": 1536, "head_depth": 12},
    }

    tokens: int
    """Positions L of the latents [B, L, C] that it works on."""
    channels: int
    """Channels C of the latents."""
    num_classes: int
    """Labels are 0 .. num_classes - 1, and num_classes is the null class; 0 makes an unconditional
    model, which knows the null class only."""
    width: int
    """Width of the encoder, and of the decoder again."""
    depth: int
    """Blocks of the encoder, and of the decoder again."""
    heads: int
    """Attention heads of each block."""
    head_width: int
    """Width of the MLP that draws a token."""
    head_depth: int
    """Blocks of the MLP that draws a token."""
    buffer: int = 16
    """Sequence positions that carry the class; the paper's 64 go with its 256 tokens."""
    label_dropout: float = 0.1
    """Probability with which training replaces a label by the null class, for guidance."""
    repeats: int = 4
    """Noise levels that training draws for each hidden token: the head is cheap beside the
    transformers."""
    tokenizer: str | None = None
    """Fingerprint of the tokenizer whose tokens it learned, null if not known."""

    def __post_init__(self) -> None:
        check_fields(
            self,
            "generator: ",
            above_0=(
                *("tokens", "channels", "width", "depth", "heads"),
                *("head_width", "head_depth", "buffer", "repeats"),
            ),
            not_below_0=("num_classes",),
            shares=("label_dropout",),
        )
        if self.width % self.heads:
            raise UserError(
                f"generator: width {self.width} must be divisible by heads {self.heads}"
            )


CONFIGS: dict[str, type[SiTConfig | DiTConfig | FlowMapConfig | MARConfig]] = {
    "sit": SiTConfig,
    "dit": DiTConfig,
    "flowmap": FlowMapConfig,
    "mar": MARConfig,
}


@dataclass
class HiddenAlignmentConfig(AlignmentConfig):
    """Alignment of a SiT's or a DiT's states, in place of the latents (REPA, Yu et al. 2024).

    The paper's weight is 0.5, with block 8 of 28.
    """

    hidden: int = 2048
    """Width of the head that predicts the features."""
    cache: bool = False
    """Compute the features of all stored views once and keep them in the run's folder; without it
    the teacher sees the pictures of every batch again."""
    block: int = 8
    """The block whose states are aligned; 1 is the first."""
    images: int | None = None
    """Images seen after which alignment ends, as it then holds a generator back (Wang et al. 2025,
    HASTE); null for never."""


@dataclass
class FewStepConfig:
    """What a flow map learns from. Only for the family flowmap."""

    velocity: Literal["teacher", "data"] = "teacher"
    """Whose velocities: the guided ones of the generator that init names, or those of the data,
    guided by the network itself."""
    rule: Literal["jvp", "difference", "step"] = "step"
    """How averages follow from velocities: by the derivative along the path, exact (jvp) or by
    finite differences (difference), both in float32; or by a short step along the path (step)."""
    anchors: float = 0.5
    """Share of each batch that learns the velocity itself, s = t."""
    whole: float = 0.25
    """Share of the other samples that start from pure noise, t = 1, and again of those that lead to
    the data, s = 0; 1 of the latter alone would be a consistency model."""

    def __post_init__(self) -> None:
        check_fields(self, "few_step.", shares=("anchors", "whole"))
