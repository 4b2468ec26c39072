"""Tokens that are a picture's spectrum, shown to a transformer as the picture itself.

Where something stands in a picture is in the phases of its coefficients, which is hard to learn
from them and easy from pixels. The change of basis is linear and exact, so the generator still
draws tokens; only its transformer works on patches of a picture as small as the coefficients allow.

Noise is that of the picture too: tokens are at unit variance, coarse or fine, and noise that hid
all of them alike would have layout and grain drawn at the same time. Scaled by their amplitudes in
photographs (:func:`amplitudes`) they appear coarse to fine, each on what is there already.
"""

import math
from functools import lru_cache

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from softvq.tokenizer.spectral import Spectrum, spectrum_order

PATCH = 6  # pixels of the small picture's patches: 8 x 8 of them hold 64 tokens of 32 channels


@lru_cache
def picture_grid(tokens: int, channels: int) -> tuple[int, int]:
    """Rows and columns of patches that L tokens of C coefficients need."""
    side = math.ceil(Spectrum(tokens, channels).side / PATCH)
    return side, side


@lru_cache
def amplitudes(tokens: int, channels: int) -> Tensor:
    """Standard deviations [L, C] of the coefficients in photographs, of mean square 1."""
    with torch.device("cpu"):  # numbers, even where a network is built without memory
        scale = spectrum_order(tokens * channels)[1]
    return (scale / scale.square().mean().sqrt()).view(tokens, channels)


class Picture(nn.Module):
    """Spectral tokens [B, k, C] at their amplitudes <-> their picture [B, 3, H, W], cut in patches.

    The first k of L make the same picture in fewer pixels.

    What a network sees is the picture, and another in which fine structure counts for more, by the
    square root of its amplitude: 6 channels.
    """

    weight: Tensor

    def __init__(self, tokens: int, channels: int):
        super().__init__()
        self.spectrum = Spectrum(tokens, channels)
        weight = amplitudes(tokens, channels).rsqrt().to(torch.get_default_device())
        self.register_buffer("weight", weight, persistent=False)
        self.spectrum.scale = torch.ones_like(self.spectrum.scale)

    def views(self, x: Tensor) -> Tensor:
        """[B, k, C] -> [B, 6, H, W] in float32."""
        height, width = (PATCH * cells for cells in picture_grid(*x.shape[1:]))
        seen = (x, x * self.weight[: x.shape[1]])
        views = [self.spectrum.inverse(y, height, width) for y in seen]
        return torch.cat(views, dim=1)

    def tokens(self, pictures: Tensor, count: int | None = None) -> Tensor:
        """[B, 3 n, H, W] -> [B, k, n C] in float32; ``count`` = k, by default L."""
        parts = pictures.split(3, dim=1)
        return torch.cat([self.spectrum(part, count) for part in parts], dim=-1)


def to_patches(pictures: Tensor) -> Tensor:
    """[B, C, H, W] -> [B, N, C * PATCH^2], patches row by row."""
    return F.pixel_unshuffle(pictures, PATCH).flatten(2).transpose(1, 2)


def from_patches(patches: Tensor, grid: tuple[int, int]) -> Tensor:
    """The inverse of :func:`to_patches`."""
    return F.pixel_shuffle(patches.transpose(1, 2).unflatten(2, grid), PATCH)


class ModulatedResidual(nn.Module):
    """x + gate * conv(gelu(conv(scale * norm(x) + shift))) of maps [B, D, H, W].

    The condition [B, width] gives shift, scale and gate; the gate starts at zero, as in DiT.
    """

    def __init__(self, channels: int, width: int):
        super().__init__()
        self.norm = nn.LayerNorm(channels, eps=1e-6, elementwise_affine=False)
        self.conv1 = nn.Conv2d(channels, channels, 3, padding=1)
        self.conv2 = nn.Conv2d(channels, channels, 3, padding=1)
        self.adaLN_modulation = nn.Sequential(nn.SiLU(), nn.Linear(width, 3 * channels))

    def forward(self, x: Tensor, condition: Tensor) -> Tensor:
        shift, scale, gate = self.adaLN_modulation(condition)[:, :, None, None].chunk(3, 1)
        normal = self.norm(x.permute(0, 2, 3, 1)).permute(0, 3, 1, 2)
        return x + gate * self.conv2(F.gelu(self.conv1(normal * (1 + scale) + shift)))


class Pyramid(nn.Module):
    """Convolutions around a transformer (Hoogeboom et al. 2023, "simple diffusion").

    Down: a picture's views in two steps, by 2 and by 3, to a transformer's tokens, one for each
    patch. Up: what the transformer made of them, added to what was seen on the way down, to a
    picture. What is near in a picture belongs together: convolutions know it, and a transformer of
    patches learns it from far more photos than a factory has.
    """

    def __init__(self, fine: int, width: int, out: int):
        super().__init__()
        coarse = 2 * fine
        self.tokens = coarse * 3**2  # channels that up takes of each of the transformer's tokens
        self.from_views = nn.Conv2d(6, fine, 3, padding=1)
        self.to_coarse = nn.Conv2d(fine, coarse, 2, 2)
        self.to_tokens = nn.Conv2d(coarse, width, 3, 3)
        self.to_fine = nn.Conv2d(coarse, fine * 2**2, 1)
        self.to_picture = nn.Conv2d(fine, out, 3, padding=1)
        self.down_blocks = nn.ModuleList(ModulatedResidual(c, width) for c in (fine, coarse))
        self.up_blocks = nn.ModuleList(
            ModulatedResidual(c, width) for c in (coarse, coarse, fine, fine)
        )

    def down(self, views: Tensor, condition: Tensor) -> tuple[Tensor, list[Tensor]]:
        """Views [B, 6, H, W] -> tokens [B, N, width], and the maps on the way."""
        x = self.from_views(views.contiguous(memory_format=torch.channels_last))
        fine = self.down_blocks[0](x, condition)
        coarse = self.down_blocks[1](self.to_coarse(fine), condition)
        return self.to_tokens(coarse).flatten(2).transpose(1, 2), [fine, coarse]

    def up(self, tokens: Tensor, maps: list[Tensor], condition: Tensor) -> Tensor:
        """Tokens [B, N, 18 fine] and the maps of down -> [B, out, H, W]."""
        fine, coarse = maps
        rows, columns = coarse.shape[2] // 3, coarse.shape[3] // 3
        x = coarse + F.pixel_shuffle(tokens.transpose(1, 2).unflatten(2, (rows, columns)), 3)
        for block in self.up_blocks[:2]:
            x = block(x, condition)
        x = fine + F.pixel_shuffle(self.to_fine(x), 2)
        for block in self.up_blocks[2:]:
            x = block(x, condition)
        return self.to_picture(x)
