"""The DiT block stack (Peebles & Xie 2022), which DiT and SiT share.

Shapes: B batch, L positions, C channels, D width, N tokens of the transformer. State-dict names and
shapes are those of the reference implementation's checkpoints.
"""

import math
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any, ClassVar, Literal, Self

import torch
from torch import Tensor, nn

from softvq.checks import check_fields
from softvq.errors import UserError
from softvq.generator.diffusion import Diffusion
from softvq.generator.picture import Picture, picture_grid
from softvq.generator.process import PROCESSES, Process
from softvq.io import load_model, save_model
from softvq.layers import (
    Attention,
    LabelEmbedder,
    Mlp,
    SwiGLU,
    TimeEmbedder,
    modulate,
    rotary_angles,
    sincos_1d,
    sincos_2d,
)

NORMS: dict[str, type[nn.Module]] = {"layer": nn.LayerNorm, "rms": nn.RMSNorm}
MLPS: dict[str, Callable[..., nn.Module]] = {
    "gelu": partial(Mlp, approximate="tanh"),
    "swiglu": SwiGLU,
}

MOST_TIMESTEPS = 100_000

# The published sizes, and one for tests.
SIZES: dict[str, dict[str, Any]] = {
    "tiny": {"width": 64, "depth": 2, "heads": 2},
    "S": {"width": 384, "depth": 12, "heads": 6},
    "B": {"width": 768, "depth": 12, "heads": 12},
    "L": {"width": 1024, "depth": 24, "heads": 16},
    "XL": {"width": 1152, "depth": 28, "heads": 16},
}


@dataclass(frozen=True)
class TransformerConfig:
    """Shape of a generator. Raises UserError if the fields do not fit together.

    tokens, channels:     the latents it works on: L positions of C channels
    num_classes:          labels are 0..num_classes-1 and num_classes is the null class;
                          0 makes an unconditional model, which knows the null class only
    width, depth, heads:  of the transformer; mlp_ratio is its MLP's width over ``width``
    qk_norm:              a norm on each head's queries and keys
    label_dropout:        probability with which training replaces a label by the null class
    patch:                None: latents are sequences [B, L, C], one token per position. p: latents
                          are maps [B, C, H, W] with L = H * W, one token per p x p positions
    rows:                 H of a map; None for a square one
    picture:              the tokens are a picture's spectrum (``network: spectral``), and the
                          transformer's tokens patches of that picture, see ``generator.picture``
    norm, mlp:            "layer" | "rms", "gelu" | "swiglu"
    rotary:               turns queries and keys by their positions, beside the fixed positions
    tokenizer:            fingerprint of the tokenizer whose tokens it learned, None if not known
    """

    tokens: int
    channels: int
    num_classes: int
    width: int
    depth: int
    heads: int
    mlp_ratio: float = 4.0
    qk_norm: bool = False
    label_dropout: float = 0.1
    patch: int | None = None
    rows: int | None = None
    picture: bool = False
    norm: Literal["layer", "rms"] = "layer"
    mlp: Literal["gelu", "swiglu"] = "gelu"
    rotary: bool = False
    tokenizer: str | None = None

    def __post_init__(self) -> None:
        check_fields(
            self,
            "generator: ",
            above_0=(
                *("tokens", "channels", "width", "depth", "heads"),
                *("mlp_ratio", "patch", "rows"),
            ),
            not_below_0=("num_classes",),
            shares=("label_dropout",),
        )
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

    @classmethod
    def sized(cls, size: str, tokens: int, channels: int, num_classes: int, **others: Any) -> Self:
        """A size of SIZES for these tokens; ``others`` are further fields. Raises UserError."""
        if size not in SIZES:
            raise UserError(f"generator: size '{size}' is none of {', '.join(SIZES)}")
        return cls(tokens, channels, num_classes, **SIZES[size], **others)

    @property
    def latent_shape(self) -> tuple[int, ...]:
        """Of one image's latents: (L, C), or (C, H, W) with a patch."""
        if self.patch is None:
            return self.tokens, self.channels
        rows = self.rows or math.isqrt(self.tokens)
        return self.channels, rows, self.tokens // rows

    @property
    def grid(self) -> tuple[int, int]:
        """Rows and columns of transformer tokens; a sequence is one row."""
        if self.picture:
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
    def process(self) -> Process:
        """What the network's predictions mean, for losses and samplers."""
        raise NotImplementedError


@dataclass(frozen=True)
class SiTConfig(TransformerConfig):
    """Adds the interpolant, "linear" | "cosine", and the target: "v", "eps" or "x0"."""

    interpolant: Literal["linear", "cosine"] = "linear"
    target: Literal["v", "eps", "x0"] = "v"

    @property
    def process(self) -> Process:
        return PROCESSES[self.interpolant](self.target)


@dataclass(frozen=True)
class DiTConfig(TransformerConfig):
    """Adds the diffusion, see :class:`Diffusion`, and whether its variance is learned."""

    target: Literal["v", "eps", "x0"] = "eps"
    schedule: Literal["linear", "cosine"] = "linear"
    timesteps: int = 1000
    learn_variance: bool = True

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
    def process(self) -> Diffusion:
        return Diffusion(self.target, self.schedule, self.timesteps)


def layer_norm(width: int, kind: str = "layer") -> nn.Module:
    """A norm of NORMS without learned affine: adaLN supplies scale and shift."""
    return NORMS[kind](width, elementwise_affine=False, eps=1e-6)


class Block(nn.Module):
    """Transformer block with adaLN-Zero: x [B, N, D], condition [B, D] -> [B, N, D].

    The condition gives shift, scale and gate of both branches. Gates start at zero, so a new
    block is the identity.
    """

    def __init__(self, config: TransformerConfig):
        super().__init__()
        width = config.width
        self.norm1 = layer_norm(width, config.norm)
        self.attn = Attention(width, config.heads, NORMS[config.norm] if config.qk_norm else None)
        self.norm2 = layer_norm(width, config.norm)
        self.mlp = MLPS[config.mlp](width, config.mlp_ratio)
        self.adaLN_modulation = nn.Sequential(nn.SiLU(), nn.Linear(width, 6 * width))

    def forward(self, x: Tensor, condition: Tensor, angles: Tensor | None = None) -> Tensor:
        shift1, scale1, gate1, shift2, scale2, gate2 = self.adaLN_modulation(condition).chunk(6, -1)
        x = x + gate1[:, None] * self.attn(modulate(self.norm1(x), shift1, scale1), angles)
        return x + gate2[:, None] * self.mlp(modulate(self.norm2(x), shift2, scale2))


class FinalLayer(nn.Module):
    """adaLN and a projection: x [B, N, D], condition [B, D] -> [B, N, channels]."""

    def __init__(self, width: int, channels: int, norm: str = "layer"):
        super().__init__()
        self.norm_final = layer_norm(width, norm)
        self.linear = nn.Linear(width, channels)
        self.adaLN_modulation = nn.Sequential(nn.SiLU(), nn.Linear(width, 2 * width))

    def forward(self, x: Tensor, condition: Tensor) -> Tensor:
        shift, scale = self.adaLN_modulation(condition).chunk(2, -1)
        return self.linear(modulate(self.norm_final(x), shift, scale))


class PatchEmbedder(nn.Module):
    """Maps [B, C, H, W] -> tokens [B, N, D], row-major."""

    def __init__(self, channels: int, width: int, patch: int):
        super().__init__()
        self.proj = nn.Conv2d(channels, width, patch, patch)

    def forward(self, x: Tensor) -> Tensor:
        return self.proj(x).flatten(2).transpose(1, 2)


class TokenTransformer(nn.Module):
    """``network(x, t, y) -> prediction``, like x but of ``config.out_channels`` channels.

    x  noisy latents [B, *config.latent_shape]
    t  times [B] as ``config.process.clock`` gives them
    y  labels [B], ``config.num_classes`` is the null class; None means the null class for all,
       and an unconditional model ignores y

    Raises ValueError for latents of another shape.
    """

    config_class: ClassVar[type[TransformerConfig]]
    pos_embed: Tensor
    angles: Tensor | None

    def __init__(self, config: TransformerConfig):
        super().__init__()
        self.config = config
        width, patch, (rows, columns) = config.width, config.patch, config.grid
        self.x_embedder: nn.Module
        self.picture: Picture | None = None
        out = config.out_channels * (patch or 1) ** 2
        if config.picture:
            self.picture = Picture(config.tokens, config.channels)
            self.x_embedder = nn.Linear(self.picture.inputs, width)
            out = self.picture.outputs * config.out_channels // config.channels
        elif patch is None:
            self.x_embedder = nn.Linear(config.channels, width)
        else:
            self.x_embedder = PatchEmbedder(config.channels, width, patch)
        if patch or config.picture:
            positions = sincos_2d(rows, columns, width)
            places = torch.cartesian_prod(torch.arange(rows), torch.arange(columns))
        else:
            positions = sincos_1d(columns, width)
            places = torch.arange(columns)[:, None]
        self.t_embedder = TimeEmbedder(width)
        self.y_embedder = LabelEmbedder(config.num_classes, width)
        self.register_buffer("pos_embed", positions[None])
        angles = rotary_angles(places, width // config.heads) if config.rotary else None
        self.register_buffer("angles", angles, persistent=False)
        self.blocks = nn.ModuleList(Block(config) for _ in range(config.depth))
        self.final_layer = FinalLayer(width, out, config.norm)
        self._initialise()

    def _initialise(self) -> None:
        """The DiT paper's: Xavier everywhere, small embeddings, zero gates and zero output."""
        for module in self.modules():
            if isinstance(module, nn.Linear | nn.Conv2d):
                nn.init.xavier_uniform_(module.weight.flatten(1))
                if module.bias is not None:
                    nn.init.zeros_(module.bias)
        nn.init.normal_(self.y_embedder.embedding_table.weight, std=0.02)
        for layer in self.t_embedder.mlp:
            if isinstance(layer, nn.Linear):
                nn.init.normal_(layer.weight, std=0.02)
        modulations = [layer.adaLN_modulation[1] for layer in (*self.blocks, self.final_layer)]
        for linear in (*modulations, self.final_layer.linear):
            nn.init.zeros_(linear.weight)

    def forward(self, x: Tensor, t: Tensor, y: Tensor | None = None) -> Tensor:
        if x.shape[1:] != self.config.latent_shape:
            expected = ", ".join(map(str, self.config.latent_shape))
            raise ValueError(f"expected latents [B, {expected}], got {list(x.shape)}")
        if y is None or self.config.num_classes == 0:
            y = torch.full((x.shape[0],), self.config.num_classes, device=x.device)
        condition = self.t_embedder(t) + self.y_embedder(y)
        if self.picture is not None:
            x = self.picture.to_patches(x)
        x = self.x_embedder(x) + self.pos_embed
        for block in self.blocks:
            x = block(x, condition, self.angles)
        return self._map(self.final_layer(x, condition))

    def _map(self, tokens: Tensor) -> Tensor:
        """Sequences as they are; with a patch, [B, N, p * p * channels] -> [B, channels, H, W]."""
        patch = self.config.patch
        if self.picture is not None:
            parts = tokens.split(self.picture.outputs, dim=-1)
            return torch.cat([self.picture.from_patches(part) for part in parts], dim=-1)
        if patch is None:
            return tokens
        cells = tokens.unflatten(1, self.config.grid).unflatten(3, (patch, patch, -1))
        return cells.permute(0, 5, 1, 3, 2, 4).flatten(4, 5).flatten(2, 3)

    def save_pretrained(self, directory: str | Path, half: bool = False) -> None:
        """Write config.json and model.safetensors; ``half`` stores the weights in float16."""
        save_model(self, directory, half=half)

    @classmethod
    def from_pretrained(cls, directory: str | Path) -> Self:
        """Load strictly what ``save_pretrained`` wrote, in evaluation mode, on the CPU.

        ``softvq.open_generator`` opens other layouts and families too. Raises UserError for a
        missing or damaged file, an unknown config field, another kind of model, and weights that
        are missing, extra, of another shape or not finite.
        """
        return load_model(cls, cls.config_class, directory)


class SiT(TokenTransformer):
    """Scalable interpolant transformer (Ma et al. 2024): t in [0, 1], 0 data, 1 noise.

    By default it predicts the velocity dx/dt on straight lines.
    """

    config_class = SiTConfig


class DiT(TokenTransformer):
    """Diffusion transformer (Peebles & Xie 2022): t are timesteps 0..T-1 of a diffusion.

    By default it predicts the noise and, in as many channels again, the variance of a step.
    """

    config_class = DiTConfig


@contextmanager
def hidden_states(network: TokenTransformer, block: int) -> Iterator[list[Tensor]]:
    """Collects what block ``block`` (1 is the first) gives out, [B, N, D], at every call.

    The states are part of the graph, so that a loss on them trains the blocks before: the place to
    align a generator with other features (REPA, Yu et al. 2024). Raises UserError if there is no
    such block.

    >>> with hidden_states(network, 8) as states:
    ...     loss = training_loss(...)
    >>> features = states[0]
    """
    if not 1 <= block <= len(network.blocks):
        raise UserError(f"block {block} is none of 1..{len(network.blocks)}")
    states: list[Tensor] = []

    def keep(module: nn.Module, args: Any, output: Tensor) -> None:
        states.append(output)

    handle = network.blocks[block - 1].register_forward_hook(keep)
    try:
        yield states
    finally:
        handle.remove()
