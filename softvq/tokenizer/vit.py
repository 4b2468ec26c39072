"""The 1-D vision transformer: an image becomes L tokens, L tokens become an image.

Encoder: patches (+ class token) + learned positions, then L learned latent tokens with their own
positions; all blocks run over the whole sequence; the last L outputs are the features.
Decoder: one mask token per patch (+ class token) + positions, then the L latents; the patch
outputs become pixels. Blocks are DINOv2's: pre-norm, exact GELU, optional LayerScale.
"""

from typing import TYPE_CHECKING

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from softvq.errors import UserError
from softvq.layers import Attention, Mlp

if TYPE_CHECKING:
    from softvq.tokenizer.model import TokenizerConfig


class LayerScale(nn.Module):
    """A learned factor per channel (Touvron et al. 2021)."""

    def __init__(self, width: int, value: float):
        super().__init__()
        self.value = value
        self.gamma = nn.Parameter(torch.full((width,), value))

    def forward(self, x: Tensor) -> Tensor:
        return x * self.gamma


class Block(nn.Module):
    """Pre-norm transformer block, [B, N, D] -> [B, N, D]."""

    def __init__(self, width: int, heads: int, layer_scale: float | None):
        super().__init__()
        self.norm1 = nn.LayerNorm(width, eps=1e-6)
        self.attn = Attention(width, heads)
        self.ls1 = LayerScale(width, layer_scale) if layer_scale else nn.Identity()
        self.norm2 = nn.LayerNorm(width, eps=1e-6)
        self.mlp = Mlp(width)
        self.ls2 = LayerScale(width, layer_scale) if layer_scale else nn.Identity()

    def forward(self, x: Tensor) -> Tensor:
        x = x + self.ls1(self.attn(self.norm1(x)))
        return x + self.ls2(self.mlp(self.norm2(x)))


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


class Grid(nn.Module):
    """Learned positions of the patch grid (and class token), resized to any grid when asked."""

    def __init__(self, rows: int, columns: int, width: int, class_token: bool):
        super().__init__()
        self.rows, self.columns = rows, columns
        self.cls_token = nn.Parameter(torch.zeros(1, 1, width)) if class_token else None
        self.pos_embed = nn.Parameter(torch.zeros(1, rows * columns + class_token, width))

    def forward(self, patches: Tensor, rows: int, columns: int) -> Tensor:
        """[B, rows * columns, D] -> [B, (1 +) rows * columns, D] with positions added."""
        positions: Tensor = self.pos_embed
        if (rows, columns) != (self.rows, self.columns):
            prefix, table = positions.split(
                [positions.shape[1] - self.rows * self.columns, self.rows * self.columns], dim=1
            )
            table = table.transpose(1, 2).unflatten(2, (self.rows, self.columns))
            table = F.interpolate(table.float(), (rows, columns), mode="bicubic", antialias=True)
            positions = torch.cat([prefix, table.flatten(2).transpose(1, 2)], dim=1)
        if self.cls_token is not None:
            patches = torch.cat([self.cls_token.expand(patches.shape[0], -1, -1), patches], dim=1)
        return patches + positions


class Encoder(nn.Module):
    """Images [B, 3, H, W] in [-1, 1] -> features of the L latent tokens [B, L, D]."""

    def __init__(self, config: "TokenizerConfig"):
        super().__init__()
        rows, columns = config.grid
        width = config.encoder_width
        self.patch = config.patch
        self.patch_embed = STEMS[config.stem](config.patch, width)
        self.grid = Grid(rows, columns, width, config.class_token)
        self.latent_tokens = nn.Parameter(torch.zeros(1, config.tokens, width))
        self.latent_pos_embed = nn.Parameter(torch.zeros(1, config.tokens, width))
        self.blocks = nn.ModuleList(
            Block(width, config.encoder_heads, config.layer_scale)
            for _ in range(config.encoder_depth)
        )
        self.norm = nn.LayerNorm(width, eps=1e-6)

    def forward(self, images: Tensor) -> Tensor:
        if images.shape[-2] % self.patch or images.shape[-1] % self.patch:
            raise UserError(
                f"image size {tuple(images.shape[-2:])} is not divisible by the patch {self.patch}"
            )
        patches = self.patch_embed(images)
        x = self.grid(patches.flatten(2).transpose(1, 2), *patches.shape[-2:])
        latents = (self.latent_tokens + self.latent_pos_embed).expand(x.shape[0], -1, -1)
        x = torch.cat([x, latents.to(x.dtype)], dim=1)
        for block in self.blocks:
            x = block(x)
        return self.norm(x[:, -self.latent_tokens.shape[1] :])


class Decoder(nn.Module):
    """Latent features [B, L, D] -> images [B, 3, H, W], unbounded (about [-1, 1])."""

    def __init__(self, config: "TokenizerConfig"):
        super().__init__()
        rows, columns = config.grid
        width = config.decoder_width
        self.patch = config.patch
        self.grid = Grid(rows, columns, width, config.class_token)
        self.mask_token = nn.Parameter(torch.zeros(1, 1, width))
        self.latent_pos_embed = nn.Parameter(torch.zeros(1, config.tokens, width))
        self.blocks = nn.ModuleList(
            Block(width, config.decoder_heads, config.layer_scale)
            for _ in range(config.decoder_depth)
        )
        self.norm = nn.LayerNorm(width, eps=1e-6)
        self.to_pixels = nn.Linear(width, 3 * config.patch**2)

    def forward(self, latents: Tensor, rows: int, columns: int) -> Tensor:
        masks = self.mask_token.expand(latents.shape[0], rows * columns, -1)
        x = self.grid(masks, rows, columns)
        prefix = x.shape[1] - rows * columns
        x = torch.cat([x, (latents + self.latent_pos_embed).to(x.dtype)], dim=1)
        for block in self.blocks:
            x = block(x)
        pixels = self.to_pixels(self.norm(x[:, prefix : prefix + rows * columns]))
        pixels = pixels.unflatten(1, (rows, columns)).unflatten(-1, (3, self.patch, self.patch))
        return pixels.permute(0, 3, 1, 4, 2, 5).flatten(4).flatten(2, 3)
