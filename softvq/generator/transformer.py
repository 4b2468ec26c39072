"""The DiT block stack (Peebles & Xie 2022) on token sequences, and SiT: the stack as velocity.

Shapes: B batch, L tokens, C channels, D width. State-dict names and shapes are those of the
reference implementation's checkpoints.
"""

from dataclasses import dataclass
from pathlib import Path
from typing import Self

import torch
from torch import Tensor, nn

from softvq.errors import UserError
from softvq.io import load_model, save_model
from softvq.layers import Attention, LabelEmbedder, Mlp, TimeEmbedder, modulate, sincos_1d


@dataclass(frozen=True)
class SiTConfig:
    """Shape of a token generator. Raises UserError if the fields do not fit together.

    tokens, channels:     the latents [B, L, C] it works on
    num_classes:          labels are 0..num_classes-1 and num_classes is the null class;
                          0 makes an unconditional model, which knows the null class only
    width, depth, heads:  of the transformer; mlp_ratio is its MLP's width over ``width``
    qk_norm:              LayerNorm on each head's queries and keys
    label_dropout:        probability with which training replaces a label by the null class
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

    def __post_init__(self) -> None:
        for name in ("tokens", "channels", "width", "depth", "heads", "mlp_ratio"):
            if getattr(self, name) <= 0:
                raise UserError(f"generator: {name} must be positive, got {getattr(self, name)}")
        if self.num_classes < 0:
            raise UserError(f"generator: num_classes must be 0 or more, got {self.num_classes}")
        if not 0 <= self.label_dropout <= 1:
            raise UserError(f"generator: label_dropout {self.label_dropout} is not in [0, 1]")
        if self.width % 2 or self.width % self.heads:
            raise UserError(
                f"generator: width {self.width} must be even and divisible by heads {self.heads}"
            )


def layer_norm(width: int) -> nn.LayerNorm:
    """LayerNorm without learned affine: adaLN supplies scale and shift."""
    return nn.LayerNorm(width, elementwise_affine=False, eps=1e-6)


class Block(nn.Module):
    """Transformer block with adaLN-Zero: x [B, L, D], condition [B, D] -> [B, L, D].

    The condition gives shift, scale and gate of both branches. Gates start at zero, so a new
    block is the identity.
    """

    def __init__(self, width: int, heads: int, mlp_ratio: float, qk_norm: bool):
        super().__init__()
        self.norm1 = layer_norm(width)
        self.attn = Attention(width, heads, qk_norm=qk_norm)
        self.norm2 = layer_norm(width)
        self.mlp = Mlp(width, mlp_ratio, approximate="tanh")
        self.adaLN_modulation = nn.Sequential(nn.SiLU(), nn.Linear(width, 6 * width))

    def forward(self, x: Tensor, condition: Tensor) -> Tensor:
        shift1, scale1, gate1, shift2, scale2, gate2 = self.adaLN_modulation(condition).chunk(6, -1)
        x = x + gate1[:, None] * self.attn(modulate(self.norm1(x), shift1, scale1))
        return x + gate2[:, None] * self.mlp(modulate(self.norm2(x), shift2, scale2))


class FinalLayer(nn.Module):
    """adaLN and a projection: x [B, L, D], condition [B, D] -> [B, L, channels]."""

    def __init__(self, width: int, channels: int):
        super().__init__()
        self.norm_final = layer_norm(width)
        self.linear = nn.Linear(width, channels)
        self.adaLN_modulation = nn.Sequential(nn.SiLU(), nn.Linear(width, 2 * width))

    def forward(self, x: Tensor, condition: Tensor) -> Tensor:
        shift, scale = self.adaLN_modulation(condition).chunk(2, -1)
        return self.linear(modulate(self.norm_final(x), shift, scale))


class TokenTransformer(nn.Module):
    """What the generators on tokens share: ``net(x, t, y) -> prediction`` [B, L, out_channels].

    x  noisy latents [B, L, C]
    t  times [B] in [0, 1], 0 data, 1 noise
    y  labels [B], ``config.num_classes`` is the null class; None means the null class for all,
       and an unconditional model ignores y
    """

    def __init__(self, config: SiTConfig, out_channels: int):
        super().__init__()
        self.config = config
        width = config.width
        self.x_embedder = nn.Linear(config.channels, width)
        self.t_embedder = TimeEmbedder(width)
        self.y_embedder = LabelEmbedder(config.num_classes, width)
        self.register_buffer("pos_embed", sincos_1d(config.tokens, width)[None])
        self.blocks = nn.ModuleList(
            Block(width, config.heads, config.mlp_ratio, config.qk_norm)
            for _ in range(config.depth)
        )
        self.final_layer = FinalLayer(width, out_channels)
        self._initialise()

    def _initialise(self) -> None:
        """The DiT paper's: Xavier everywhere, small embeddings, zero gates and zero output."""
        for module in self.modules():
            if isinstance(module, nn.Linear):
                nn.init.xavier_uniform_(module.weight)
                nn.init.zeros_(module.bias)
        nn.init.normal_(self.y_embedder.embedding_table.weight, std=0.02)
        for layer in self.t_embedder.mlp:
            if isinstance(layer, nn.Linear):
                nn.init.normal_(layer.weight, std=0.02)
        modulations = [layer.adaLN_modulation[1] for layer in (*self.blocks, self.final_layer)]
        for linear in (*modulations, self.final_layer.linear):
            nn.init.zeros_(linear.weight)

    def forward(self, x: Tensor, t: Tensor, y: Tensor | None = None) -> Tensor:
        if x.shape[1:] != (self.config.tokens, self.config.channels):
            raise ValueError(
                f"expected latents [B, {self.config.tokens}, {self.config.channels}], "
                f"got {list(x.shape)}"
            )
        if y is None or self.config.num_classes == 0:
            y = torch.full((x.shape[0],), self.config.num_classes, device=x.device)
        condition = self.t_embedder(t) + self.y_embedder(y)
        x = self.x_embedder(x) + self.pos_embed
        for block in self.blocks:
            x = block(x, condition)
        return self.final_layer(x, condition)


class SiT(TokenTransformer):
    """Scalable interpolant transformer (Ma et al. 2024): predicts the velocity dx/dt [B, L, C]."""

    def __init__(self, config: SiTConfig):
        super().__init__(config, out_channels=config.channels)

    def save_pretrained(self, directory: str | Path, half: bool = False) -> None:
        """Write config.json and model.safetensors; ``half`` stores the weights in float16."""
        save_model(self, directory, half=half)

    @classmethod
    def from_pretrained(cls, directory: str | Path) -> Self:
        """Load what ``save_pretrained`` wrote, strictly, in evaluation mode, on the CPU.

        Raises UserError for a missing or damaged file, an unknown config field, and weights that
        are missing, extra or of another shape.
        """
        return load_model(cls, SiTConfig, directory)
