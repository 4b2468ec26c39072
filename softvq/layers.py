"""Building blocks that tokenizers and generators share. Shapes: B batch, N sequence, D width."""

import math
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, contextmanager, nullcontext
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from softvq.errors import UserError


def full_precision(x: Tensor) -> AbstractContextManager:
    """Around arithmetic on x that must be float32 whatever the autocast; x itself is not cast."""
    device = x.device.type
    if not torch.amp.is_autocast_available(device):  # meta tensors, on which costs are counted
        return nullcontext()
    return torch.autocast(device, enabled=False)


@contextmanager
def evaluating(module: nn.Module) -> Iterator[None]:
    """Evaluation mode without gradients; afterwards every part is in the mode that it had."""
    modes = [(part, part.training) for part in module.modules()]
    module.eval()
    try:
        with torch.no_grad():
            yield
    finally:
        for part, training in modes:
            part.training = training


def in_blocks(network: Callable[..., Tensor], rows: int | None, *inputs: Any) -> Tensor:
    """``network(*inputs)``, [B, ...], for ``rows`` samples at a time; None for all at once.

    Each input has a first axis of B samples, or is None. The last sample is repeated until the last
    block is full, so that shapes are always the same, and with them how sums are rounded: a
    sample's result does not depend on those beside it, bit for bit.
    """
    if rows is None:
        return network(*inputs)
    count = inputs[0].shape[0]
    places = [
        torch.arange(first, first + rows, device=inputs[0].device).clamp(max=count - 1)
        for first in range(0, count, rows)
    ]
    parts = [network(*(None if x is None else x[place] for x in inputs)) for place in places]
    return torch.cat(parts)[:count]


class InBlocks:
    """A network that is called :func:`in_blocks`."""

    def __init__(self, network: Any, rows: int):
        self.network, self.rows, self.config = network, rows, network.config
        self.parameters = network.parameters

    def __call__(self, *inputs: Any) -> Tensor:
        return in_blocks(self.network, self.rows, *inputs)


def attend(q: Tensor, k: Tensor, v: Tensor, mask: Tensor | None = None) -> Tensor:
    """softmax(q k^T / sqrt(d)) v, [B, heads, N, d] each, through the fused kernel.

    ``mask``, bool, broadcasts to [B, heads, N, N]: which keys a query reads; None for all.

    In float32 on CPUs, where in bfloat16 it is slower, above all backward.
    """
    if v.dtype != torch.bfloat16 or v.device.type != "cpu":
        return F.scaled_dot_product_attention(q, k, v, mask)
    with full_precision(v):
        out = F.scaled_dot_product_attention(q.float(), k.float(), v.float(), mask)
        return out.to(v.dtype)


def unit(features: Tensor) -> Tensor:
    """[B, C, H, W] scaled to length 1 over channels, at least in float32."""
    features = features.to(torch.promote_types(features.dtype, torch.float32))
    return features / (torch.linalg.vector_norm(features, dim=1, keepdim=True) + 1e-10)


class Attention(nn.Module):
    """Multi-head self-attention, [B, N, D] -> [B, N, D].

    ``qk_norm`` is the class of a norm on each head's queries and keys; ``angles`` are rotary
    positions, see :func:`rotate`; ``mask`` as in :func:`attend`. With ``mixes`` its values are
    mixed with ``first``, those of another block, as :meth:`values` gives them.
    """

    def __init__(
        self,
        width: int,
        heads: int,
        qk_norm: type[nn.Module] | None = None,
        mixes: bool = False,
    ):
        super().__init__()
        if width % heads:
            raise UserError(f"width {width} is not divisible by heads {heads}")
        self.heads = heads
        self.qkv = nn.Linear(width, 3 * width)
        self.q_norm = qk_norm(width // heads) if qk_norm else nn.Identity()
        self.k_norm = qk_norm(width // heads) if qk_norm else nn.Identity()
        self.proj = nn.Linear(width, width)
        self.mix = nn.Parameter(torch.tensor([0.5, 0.5])) if mixes else None

    def values(self, x: Tensor) -> Tensor:
        """What it attends to of x, [B, heads, N, D / heads]."""
        width = x.shape[-1]
        v = F.linear(x, self.qkv.weight[-width:], self.qkv.bias[-width:])
        return v.unflatten(-1, (self.heads, -1)).transpose(1, 2)

    def forward(
        self,
        x: Tensor,
        angles: Tensor | None = None,
        mask: Tensor | None = None,
        first: Tensor | None = None,
    ) -> Tensor:
        q, k, v = self.qkv(x).unflatten(-1, (3, self.heads, -1)).permute(2, 0, 3, 1, 4)
        q, k = self.q_norm(q), self.k_norm(k)
        if angles is not None:
            q, k = rotate(q, angles), rotate(k, angles)
        if self.mix is not None and first is not None:
            v = (self.mix[0] * v + self.mix[1] * first).to(v.dtype)
        out = attend(q, k, v, mask)
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


class SwiGLU(nn.Module):
    """Gated MLP, [..., D] -> [..., D] (Shazeer 2020): silu(x W) * (x V), projected back.

    Its hidden width is two thirds of ``ratio`` * D: as many parameters as :class:`Mlp`.
    """

    def __init__(self, width: int, ratio: float = 4.0):
        super().__init__()
        hidden = int(width * ratio * 2 / 3)
        self.fc1 = nn.Linear(width, 2 * hidden)
        self.fc2 = nn.Linear(hidden, width)

    def forward(self, x: Tensor) -> Tensor:
        gate, value = self.fc1(x).chunk(2, -1)
        return self.fc2(F.silu(gate) * value)


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


class Rotary(nn.Module):
    """Rotary positions of a patch grid for every block and head (Heo et al. 2024, Sec. 3).

    Channel pair t of a patch in column x and row y turns by freqs_x[t] * x + freqs_y[t] * y, so
    that queries meet keys by their offset alone. Mixed (``learned``): any two frequencies, learned
    per block and head; they start at magnitudes theta^(-4t/d), t < d/4, in two perpendicular
    directions, turned at random for each head of d channels. Axial: the same in fixed directions:
    half of the pairs follow the column, half the row.
    """

    freqs: Tensor  # [2, depth, heads * d / 2]: columns, rows

    def __init__(self, depth: int, heads: int, channels: int, theta: float, learned: bool):
        super().__init__()
        if channels % 4:
            raise UserError(f"rotary positions need heads of 4n channels, got {channels}")
        self.heads = heads
        magnitude = theta ** (-torch.arange(0, channels, 4) / channels)
        shape = (depth, heads, 1)
        turn = 2 * math.pi * (torch.rand(shape) if learned else torch.zeros(shape))
        x, y = magnitude * turn.cos(), magnitude * turn.sin()
        freqs = torch.stack([torch.cat([x, -y], dim=-1), torch.cat([y, x], dim=-1)]).flatten(2)
        if learned:
            self.freqs = nn.Parameter(freqs)
        else:
            self.register_buffer("freqs", freqs, persistent=False)

    def forward(self, rows: int, columns: int) -> Tensor:
        """Angles of the patches, [depth, heads, rows * columns, d / 2], row-major, in radians."""
        freqs = self.freqs.to(torch.promote_types(self.freqs.dtype, torch.float32))
        x = torch.arange(columns, dtype=freqs.dtype, device=freqs.device).repeat(rows)
        y = torch.arange(rows, dtype=freqs.dtype, device=freqs.device).repeat_interleave(columns)
        angles = x[:, None] * freqs[0, :, None] + y[:, None] * freqs[1, :, None]
        return angles.unflatten(-1, (self.heads, -1)).transpose(1, 2)


def rotary_angles(positions: Tensor, width: int, max_period: float = 10000.0) -> Tensor:
    """Angles [N, width / 2] for :func:`rotate`, from positions [N, A] on A axes (Su et al. 2021).

    The axes share the channel pairs evenly: ``width`` must be divisible by 2 A.
    """
    each = width // (2 * positions.shape[1])
    frequencies = torch.exp(-math.log(max_period) * torch.arange(each) / each)
    return (positions[..., None].float() * frequencies).flatten(1)


def rotate(x: Tensor, angles: Tensor) -> Tensor:
    """Neighbouring channels of x [..., N, d] turned, as points of a plane, by angles [..., N, d/2].

    In the precision of the angles (Su et al. 2021, eq. 34).
    """
    a, b = x.unflatten(-1, (-1, 2)).unbind(-1)
    cos, sin = angles.cos(), angles.sin()
    return torch.stack([a * cos - b * sin, a * sin + b * cos], dim=-1).flatten(-2).to(x.dtype)


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
