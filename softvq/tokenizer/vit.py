"""The 1-D vision transformer: an image becomes L tokens, L tokens become an image.

Encoder: patches (+ class token) + learned positions, then L learned latent tokens with their own
positions; all blocks run over the whole sequence; the last L outputs are the features.
Decoder: one mask token per patch (+ class token) + positions, then the L latents; the patch
outputs become pixels. Blocks are DINOv2's: pre-norm, exact GELU, optional LayerScale.
In a nested encoder patches read patches, and a latent token reads patches and the tokens before it:
the first k tokens are the same however many are asked for. Any decoder takes the first k tokens.
With rotary positions the patches, and they alone, turn queries and keys in every block. The encoder
adds its learned positions all the same, the decoder does not: so it is in the reference.
"""

import math
from collections.abc import Iterable
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from softvq.layers import Attention, Mlp, Rotary, sincos_2d
from softvq.tokenizer.config import TokenizerConfig


class LayerScale(nn.Module):
    """A learned factor per channel (Touvron et al. 2021)."""

    def __init__(self, width: int, value: float):
        super().__init__()
        self.value = value
        self.gamma = nn.Parameter(torch.full((width,), value))

    def forward(self, x: Tensor) -> Tensor:
        return x * self.gamma


class Block(nn.Module):
    """Pre-norm transformer block, [B, N, D] -> [B, N, D]; ``angles``, ``mask`` as in Attention."""

    def __init__(self, width: int, heads: int, layer_scale: float | None):
        super().__init__()
        self.norm1 = nn.LayerNorm(width, eps=1e-6)
        self.attn = Attention(width, heads)
        self.ls1 = LayerScale(width, layer_scale) if layer_scale else nn.Identity()
        self.norm2 = nn.LayerNorm(width, eps=1e-6)
        self.mlp = Mlp(width)
        self.ls2 = LayerScale(width, layer_scale) if layer_scale else nn.Identity()

    def forward(
        self, x: Tensor, angles: Tensor | None = None, mask: Tensor | None = None
    ) -> Tensor:
        x = x + self.ls1(self.attn(self.norm1(x), angles, mask))
        return x + self.ls2(self.mlp(self.norm2(x)))

    @torch.no_grad()
    def start_local(self) -> None:
        """Queries and keys start alike, so that attention prefers near positions (Trockman & Kolter
        2023); attention outputs start open, MLP outputs at zero."""
        query, key, _ = self.attn.qkv.weight.chunk(3)
        key.mul_(0.3).add_(query)
        self.attn.proj.weight.mul_(0.5)
        self.mlp.fc2.weight.zero_()


class PatchStem(nn.Module):
    """[B, 3, H, W] -> [B, D, H/patch, W/patch] in one step."""

    def __init__(self, patch: int, width: int):
        super().__init__()
        self.proj = nn.Conv2d(3, width, patch, patch)

    def forward(self, images: Tensor) -> Tensor:
        return self.proj(images)


class ConvStem(nn.Module):
    """[B, 3, H, W] -> [B, D, H/patch, W/patch] in two steps with a GELU between."""

    def __init__(self, patch: int, width: int):
        super().__init__()
        first = patch // 2
        self.proj = nn.Sequential(
            nn.Conv2d(3, width // 2, first, first),
            nn.GELU(),
            nn.Conv2d(width // 2, width, 2, 2),
        )

    def forward(self, images: Tensor) -> Tensor:
        return self.proj(images)


STEMS: dict[str, type[nn.Module]] = {"patch": PatchStem, "conv": ConvStem}


def resize_positions(
    positions: Tensor, old: tuple[int, int], new: tuple[int, int], antialias: bool = True
) -> Tensor:
    """Positions [1, P + rows * columns, D] of an old grid, on a new one; the first P stay."""
    if old == new:
        return positions
    cells = old[0] * old[1]
    prefix, table = positions.split([positions.shape[1] - cells, cells], dim=1)
    table = table.transpose(1, 2).unflatten(2, old)
    table = F.interpolate(table.float(), new, mode="bicubic", antialias=antialias)
    return torch.cat([prefix, table.flatten(2).transpose(1, 2)], dim=1)


class Grid(nn.Module):
    """Class token before the patches, and learned positions of both, resized to any grid."""

    def __init__(
        self, rows: int, columns: int, width: int, class_token: bool, positions: bool = True
    ):
        super().__init__()
        self.rows, self.columns = rows, columns
        self.cls_token = nn.Parameter(torch.zeros(1, 1, width)) if class_token else None
        table = torch.zeros(1, rows * columns + class_token, width)
        self.pos_embed = nn.Parameter(table) if positions else None

    def forward(self, patches: Tensor, rows: int, columns: int) -> Tensor:
        """[B, rows * columns, D] -> [B, (1 +) rows * columns, D] with positions added."""
        if self.cls_token is not None:
            patches = torch.cat([self.cls_token.expand(patches.shape[0], -1, -1), patches], dim=1)
        if self.pos_embed is None:
            return patches
        return patches + resize_positions(
            self.pos_embed, (self.rows, self.columns), (rows, columns)
        )


def rotary(config: TokenizerConfig, depth: int, width: int, heads: int) -> Rotary | None:
    """The rotary positions that a config asks for."""
    if config.rope == "none":
        return None
    return Rotary(depth, heads, width // heads, config.rope_theta, config.rope == "mixed")


def run_blocks(
    part: "Encoder | Decoder",
    x: Tensor,
    first: int,
    rows: int,
    columns: int,
    keep: Tensor | None = None,
    mask: Tensor | None = None,
) -> Tensor:
    """All blocks over x [B, N, D]; the patches, which begin at ``first``, have rotary positions.

    ``keep``, int64 [B, K]: which patches they are; None for all.  ``mask``: see :func:`attend`.
    """
    if part.rotary is None:
        for block in part.blocks:
            x = block(x, mask=mask)
        return x
    angles = part.rotary(rows, columns)
    if keep is not None:
        angles = angles[:, :, keep].transpose(1, 2)  # [depth, B, heads, K, d / 2]
    last = x.shape[1] - first - angles.shape[-2]
    turns = F.pad(angles, (0, 0, first, last))  # others turn by 0
    for block, angles in zip(part.blocks, turns, strict=True):
        x = block(x, angles, mask)
    return x


def token_rows(tokens: int, aspect: float) -> int:
    """Rows of the coarse grid over a picture of height / width = ``aspect`` that holds L tokens.

    The divisor of L whose grid cells come nearest to squares.
    """
    divisors = [r for r in range(1, tokens + 1) if tokens % r == 0]
    return min(divisors, key=lambda r: abs(math.log(r * r / tokens / aspect)))


@torch.no_grad()
def start_local(part: "Encoder | Decoder") -> None:
    """A start that already reads its image locally; docs/small-recipe.md measures each step.

    Patches and latent tokens share one system of 2-D coordinates (the L tokens are spread over the
    picture as a coarse grid), queries and keys start alike so that attention prefers near positions
    (Block.start_local).
    """
    blocks: Iterable[Any] = part.blocks  # Blocks, which a ModuleList does not say
    for block in blocks:
        block.start_local()
    rows, columns = part.grid.rows, part.grid.columns
    tokens, width = part.latent_pos_embed.shape[1:]
    down = token_rows(tokens, rows / columns)
    coarse = sincos_2d(down, tokens // down, width, (rows, columns))
    if part.grid.pos_embed is not None:
        part.grid.pos_embed[:, -rows * columns :] = 0.5 * sincos_2d(rows, columns, width)
    part.latent_pos_embed.copy_(0.5 * coarse)


def prefix_mask(length: int, tokens: int, device: torch.device) -> Tensor:
    """Who reads whom in a nested encoder, bool [length, length]; the last ``tokens`` are latents.

    All read what stands before the latents; a latent reads itself and the latents before it too.
    """
    mask = torch.ones(length, length, dtype=torch.bool, device=device)
    mask[:, length - tokens :] = False
    mask[length - tokens :, length - tokens :] = torch.ones_like(mask[:tokens, :tokens]).tril()
    return mask


class Encoder(nn.Module):
    """Images [B, 3, H, W] in [-1, 1] -> features of the latent tokens [B, L, D]."""

    def __init__(self, config: TokenizerConfig):
        super().__init__()
        rows, columns = config.grid
        self.width = width = config.encoder_width
        self.patch = config.patch
        self.nested = config.nested
        self.patch_embed = STEMS[config.stem](config.patch, width)
        self.grid = Grid(rows, columns, width, config.class_token)
        self.latent_tokens = nn.Parameter(torch.zeros(1, config.tokens, width))
        self.latent_pos_embed = nn.Parameter(torch.zeros(1, config.tokens, width))
        self.blocks = nn.ModuleList(
            Block(width, config.encoder_heads, config.layer_scale)
            for _ in range(config.encoder_depth)
        )
        self.rotary = rotary(config, config.encoder_depth, width, config.encoder_heads)
        self.norm = nn.LayerNorm(width, eps=1e-6)

    def init_weights(self) -> None:
        start_local(self)
        nn.init.normal_(self.latent_tokens, std=0.02)

    def forward(
        self, images: Tensor, keep: Tensor | None = None, tokens: int | None = None
    ) -> Tensor:
        """``keep``, int64 [B, K]: the patches, counted row by row, that it reads; None for all.

        ``tokens``: how many of the first tokens a nested encoder computes; None for all.
        """
        patches = self.patch_embed(images)
        rows, columns = patches.shape[-2:]
        x = self.grid(patches.flatten(2).transpose(1, 2), rows, columns)
        prefix = x.shape[1] - rows * columns
        if keep is not None:
            x = torch.cat([x[:, :prefix], x[:, prefix:].take_along_dim(keep[..., None], 1)], dim=1)
        latents = (self.latent_tokens + self.latent_pos_embed)[:, :tokens]
        x = torch.cat([x, latents.expand(x.shape[0], -1, -1).to(x.dtype)], dim=1)
        count = latents.shape[1]
        mask = prefix_mask(x.shape[1], count, x.device) if self.nested else None
        x = run_blocks(self, x, prefix, rows, columns, keep, mask)
        return self.norm(x[:, -count:])


class Decoder(nn.Module):
    """Features of k latents [B, k, D] -> images [B, 3, H, W], unbounded (about [-1, 1])."""

    def __init__(self, config: TokenizerConfig):
        super().__init__()
        rows, columns = config.grid
        self.width = width = config.decoder_width
        self.patch = config.patch
        self.grid = Grid(rows, columns, width, config.class_token, config.rope == "none")
        self.mask_token = nn.Parameter(torch.zeros(1, 1, width))
        self.latent_pos_embed = nn.Parameter(torch.zeros(1, config.tokens, width))
        self.blocks = nn.ModuleList(
            Block(width, config.decoder_heads, config.layer_scale)
            for _ in range(config.decoder_depth)
        )
        self.rotary = rotary(config, config.decoder_depth, width, config.decoder_heads)
        self.norm = nn.LayerNorm(width, eps=1e-6)
        self.to_pixels = nn.Linear(width, 3 * config.patch**2)

    def init_weights(self) -> None:
        start_local(self)
        nn.init.normal_(self.mask_token, std=0.02)

    def forward(
        self, latents: Tensor, rows: int, columns: int, present: Tensor | None = None
    ) -> Tensor:
        """``present``, bool [B, k]: which latents there are; None for all."""
        masks = self.mask_token.expand(latents.shape[0], rows * columns, -1)
        x = self.grid(masks, rows, columns)
        prefix = x.shape[1] - rows * columns
        latents = latents + self.latent_pos_embed[:, : latents.shape[1]]
        mask = None
        if present is not None:
            mask = F.pad(present, (x.shape[1], 0), value=True)[:, None, None]
        x = torch.cat([x, latents.to(x.dtype)], dim=1)
        x = run_blocks(self, x, prefix, rows, columns, mask=mask)
        pixels = self.to_pixels(self.norm(x[:, prefix : prefix + rows * columns]))
        pixels = pixels.unflatten(1, (rows, columns)).unflatten(-1, (3, self.patch, self.patch))
        return pixels.permute(0, 3, 1, 4, 2, 5).flatten(4).flatten(2, 3)
