"""Building blocks that tokenizers and generators share. Shapes: B batch, N sequence, D width."""

import math

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from softvq.errors import UserError


class Attention(nn.Module):
    """Multi-head self-attention, [B, N, D] -> [B, N, D], through the fused SDPA kernel.

    ``qk_norm`` applies a LayerNorm to each head's queries and keys.
    """

    def __init__(self, width: int, heads: int, qk_norm: bool = False):
        super().__init__()
        if width % heads:
            raise UserError(f"width {width} is not divisible by heads {heads}")
        self.heads = heads
        self.qkv = nn.Linear(width, 3 * width)
        self.q_norm = nn.LayerNorm(width // heads) if qk_norm else nn.Identity()
        self.k_norm = nn.LayerNorm(width // heads) if qk_norm else nn.Identity()
        self.proj = nn.Linear(width, width)

    def forward(self, x: Tensor) -> Tensor:
        q, k, v = self.qkv(x).unflatten(-1, (3, self.heads, -1)).permute(2, 0, 3, 1, 4)
        out = F.scaled_dot_product_attention(self.q_norm(q), self.k_norm(k), v)
        return self.proj(out.transpose(1, 2).flatten(-2))


class Mlp(nn.Module):
    """Linear - GELU - Linear, [..., D] -> [..., D]. ``approximate`` is torch's GELU option."""

    def __init__(self, width: int, ratio: float = 4.0, approximate: str = "none"):
        super().__init__()
        self.fc1 = nn.Linear(width, int(width * ratio))
        self.act = nn.GELU(approximate=approximate)
        self.fc2 = nn.Linear(int(width * ratio), width)

    def forward(self, x: Tensor) -> Tensor:
        return self.fc2(self.act(self.fc1(x)))


def sincos(positions: Tensor, width: int, max_period: float = 10000.0) -> Tensor:
    """Transformer position code of real positions [N] -> [N, width]: sines first, then cosines."""
    frequencies = torch.exp(-math.log(max_period) * torch.arange(width // 2) / (width // 2))
    angles = positions[:, None].float() * frequencies
    return torch.cat([angles.sin(), angles.cos()], dim=1)


def sincos_1d(length: int, width: int) -> Tensor:
    """Fixed positions of a token sequence, [length, width] (Vaswani et al. 2017).

    Sines and cosines alternate, as in the paper and in the reference's generators.
    """
    return sincos(torch.arange(length), width).unflatten(1, (2, -1)).transpose(1, 2).flatten(1)


def sincos_2d(
    rows: int, columns: int, width: int, extent: tuple[float, float] | None = None
) -> Tensor:
    """Fixed positions of a grid, [rows * columns, width], row-major (MAE, DiT).

    The first half of the channels codes the column, the second half the row. With ``extent``
    (height, width in cells) the grid is spread evenly over that many cells, so that two grids
    of different resolution over one picture share a coordinate system.
    """
    if width % 4:
        raise UserError(f"2-D sin-cos positions need a width divisible by 4, got {width}")
    height, span = extent or (rows, columns)
    y = (torch.arange(rows) + 0.5) * height / rows - 0.5
    x = (torch.arange(columns) + 0.5) * span / columns - 0.5
    across = sincos(x, width // 2).repeat(rows, 1)
    down = sincos(y, width // 2).repeat_interleave(columns, dim=0)
    return torch.cat([across, down], dim=1)


def timestep_embedding(t: Tensor, width: int, max_period: float = 10000.0) -> Tensor:
    """Sinusoidal code of times [B] -> [B, width], cosines first (Dhariwal & Nichol 2021)."""
    half = width // 2
    frequencies = torch.exp(
        -math.log(max_period) * torch.arange(half, dtype=torch.float32, device=t.device) / half
    )
    angles = t[:, None].float() * frequencies
    return torch.cat([angles.cos(), angles.sin()], dim=1)


class TimeEmbedder(nn.Module):
    """Times [B] -> conditioning vectors [B, width]: sinusoids of 256 channels, then an MLP."""

    def __init__(self, width: int, frequencies: int = 256):
        super().__init__()
        self.frequencies = frequencies
        self.mlp = nn.Sequential(nn.Linear(frequencies, width), nn.SiLU(), nn.Linear(width, width))

    def forward(self, t: Tensor) -> Tensor:
        code = timestep_embedding(t, self.frequencies)
        return self.mlp(code.to(next(self.mlp.parameters()).dtype))


class LabelEmbedder(nn.Module):
    """Labels [B] in 0..num_classes -> [B, width]. Label ``num_classes`` is the null class."""

    def __init__(self, num_classes: int, width: int):
        super().__init__()
        self.embedding_table = nn.Embedding(num_classes + 1, width)

    def forward(self, labels: Tensor) -> Tensor:
        return self.embedding_table(labels)


def modulate(x: Tensor, shift: Tensor, scale: Tensor) -> Tensor:
    """adaLN: x [B, N, D] scaled and shifted by vectors [B, D] (Peebles & Xie 2022)."""
    return x * (1 + scale[:, None]) + shift[:, None]
