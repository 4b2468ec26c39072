"""The DiT block stack (Peebles & Xie 2022), which DiT and SiT share.

Shapes: B batch, L positions, C channels, D width, N tokens of the transformer. State-dict names and
shapes are those of the reference implementation's checkpoints.
"""

# To torch a network that is called gives Any.
# mypy: disable-error-code="no-any-return"

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from functools import partial
from pathlib import Path
from typing import Any, ClassVar, Self

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from softvq.errors import UserError
from softvq.generator.config import DiTConfig, SiTConfig, TransformerConfig
from softvq.generator.picture import (
    PATCH,
    ModulatedResidual,
    Picture,
    Pyramid,
    from_patches,
    picture_grid,
    to_patches,
)
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


def layer_norm(width: int, kind: str = "layer") -> nn.Module:
    """A norm of NORMS without learned affine: adaLN supplies scale and shift."""
    return NORMS[kind](width, elementwise_affine=False, eps=1e-6)


class Block(nn.Module):
    """Transformer block with adaLN-Zero: x [B, N, D], condition [B, D] -> [B, N, D].

    The condition gives shift, scale and gate of both branches. Gates start at zero, so a new
    block is the identity. With ``mixes`` its attention takes the ``first`` block's values too.
    """

    def __init__(self, config: TransformerConfig, mixes: bool = False):
        super().__init__()
        width = config.width
        self.norm1 = layer_norm(width, config.norm)
        qk_norm = NORMS[config.norm] if config.qk_norm else None
        self.attn = Attention(width, config.heads, qk_norm, mixes)
        self.norm2 = layer_norm(width, config.norm)
        self.mlp = MLPS[config.mlp](width, config.mlp_ratio)
        self.adaLN_modulation = nn.Sequential(nn.SiLU(), nn.Linear(width, 6 * width))

    def values(self, x: Tensor, condition: Tensor) -> Tensor:
        """What its attention reads of x, [B, heads, N, D / heads]."""
        shift, scale = self.adaLN_modulation(condition).chunk(6, -1)[:2]
        return self.attn.values(modulate(self.norm1(x), shift, scale))

    def forward(
        self,
        x: Tensor,
        condition: Tensor,
        angles: Tensor | None = None,
        first: Tensor | None = None,
    ) -> Tensor:
        shift1, scale1, gate1, shift2, scale2, gate2 = self.adaLN_modulation(condition).chunk(6, -1)
        seen = modulate(self.norm1(x), shift1, scale1)
        x = x + gate1[:, None] * self.attn(seen, angles, first=first)
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


class Summary(nn.Module):
    """The way of further tokens into a transformer and out: a picture's pooled features, noisy and
    denoised as its own tokens are, which tell early what is drawn (REG, Wu et al. 2025)."""

    def __init__(self, config: TransformerConfig):
        super().__init__()
        self.proj = nn.Linear(config.channels, config.width)
        self.position = nn.Parameter(0.02 * torch.randn(1, config.summary, config.width))
        self.final = FinalLayer(config.width, config.out_channels, config.norm)

    def embed(self, x: Tensor) -> Tensor:
        """[B, S, C] -> [B, S, D]."""
        return self.proj(x) + self.position


class PatchEmbedder(nn.Module):
    """Maps [B, C, H, W] -> tokens [B, N, D], row-major."""

    def __init__(self, channels: int, width: int, patch: int):
        super().__init__()
        self.proj = nn.Conv2d(channels, width, patch, patch)

    def forward(self, x: Tensor) -> Tensor:
        return self.proj(x).flatten(2).transpose(1, 2)


class TokenTransformer(nn.Module):
    """``network(x, t, y) -> prediction``, like x but of ``config.out_channels`` channels.

    x  noisy latents [B, *config.latent_shape], or the first k of ``config.counts``
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
        self.pyramid: Pyramid | None = None
        out = config.out_channels * (patch or 1) ** 2
        if config.picture:
            self.picture = Picture(config.tokens, config.channels)
            colours = 3 * config.out_channels // config.channels
            if config.pyramid:
                self.pyramid = Pyramid(config.pyramid, width, colours)
                self.x_embedder, out = nn.Identity(), self.pyramid.tokens
            else:
                self.x_embedder, out = nn.Linear(6 * PATCH**2, width), colours * PATCH**2
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
        self.summary = Summary(config) if config.summary else None
        if angles is not None and config.summary:  # which stands nowhere: it is not turned
            angles = F.pad(angles, (0, 0, 0, config.summary))
        self.register_buffer("angles", angles, persistent=False)
        self.count_embedder = nn.Embedding(len(config.counts), width) if config.nested else None
        for count in config.counts[1:]:
            if config.picture:  # in the places that it has in the whole picture
                positions = sincos_2d(*picture_grid(count, config.channels), width, (rows, columns))
            else:
                positions = self.pos_embed[0, :count]
            self.register_buffer(f"pos_embed_{count}", positions[None].clone(), persistent=False)
        self.blocks = nn.ModuleList(
            Block(config, config.value_residual and i > 0) for i in range(config.depth)
        )
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
        for module in self.modules():
            if isinstance(module, Block | FinalLayer | ModulatedResidual):
                nn.init.zeros_(module.adaLN_modulation.get_parameter("1.weight"))
        last = self.final_layer.linear if self.pyramid is None else self.pyramid.to_picture
        nn.init.zeros_(last.weight)
        if self.summary is not None:
            nn.init.zeros_(self.summary.final.linear.weight)
        if self.count_embedder is not None:
            nn.init.zeros_(self.count_embedder.weight)

    def forward(self, x: Tensor, t: Tensor, y: Tensor | None = None) -> Tensor:
        return self._predict(x, self._condition(x, t, y))

    def _condition(self, x: Tensor, t: Tensor, y: Tensor | None) -> Tensor:
        """What modulates every block: times and labels as vectors [B, D]."""
        if y is None or self.config.num_classes == 0:
            y = torch.full((x.shape[0],), self.config.num_classes, device=x.device)
        condition = self.t_embedder(t) + self.y_embedder(y)
        if self.count_embedder is None:
            return condition
        which = self.config.counts.index(self._count(x))
        return condition + self.count_embedder.weight[which]

    def _count(self, x: Tensor) -> int:
        """How many tokens x holds, without a summary. Raises ValueError for another shape."""
        shape, summary = self.config.latent_shape, self.config.summary
        first = x.shape[1] - summary in self.config.counts and x.shape[2:] == shape[1:]
        if x.shape[1:] != shape and not first:
            expected = ", ".join(map(str, shape))
            raise ValueError(f"expected latents [B, {expected}], got {list(x.shape)}")
        return x.shape[1] - summary

    def _predict(self, x: Tensor, condition: Tensor) -> Tensor:
        maps: list[Tensor] = []
        count = self._count(x)
        positions = getattr(self, f"pos_embed_{count}", self.pos_embed)
        x, summary = x.tensor_split([count], dim=1) if self.summary else (x, x)
        if self.picture is not None:
            x = self.picture.views(x)
            if self.pyramid is not None:
                x, maps = self.pyramid.down(x, condition)
            else:
                x = to_patches(x)
        x = self.x_embedder(x) + positions
        own = x.shape[1]
        if self.summary is not None:
            x = torch.cat([x, self.summary.embed(summary)], dim=1)
        start, first = self.blocks[0], None
        if self.config.value_residual:
            assert isinstance(start, Block)
            first = start.values(x, condition)
        for block in self.blocks:
            x = block(x, condition, self.angles, first)
        x, summary = x[:, :own], x[:, own:]
        drawn = self._tokens(self.final_layer(x, condition), maps, condition, count)
        if self.summary is None:
            return drawn
        return torch.cat([drawn, self.summary.final(summary, condition).to(drawn)], dim=1)

    def _tokens(self, x: Tensor, maps: list[Tensor], condition: Tensor, count: int) -> Tensor:
        """The last layer's numbers as a prediction of ``count`` tokens."""
        if self.picture is None:
            return self._map(x)
        if self.pyramid is not None:
            return self.picture.tokens(self.pyramid.up(x, maps, condition), count)
        grid = picture_grid(count, self.config.channels)
        return self.picture.tokens(from_patches(x, grid), count)

    def _map(self, tokens: Tensor) -> Tensor:
        """Sequences as they are; with a patch, [B, N, p * p * channels] -> [B, channels, H, W]."""
        patch = self.config.patch
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
