"""Tokens that are a picture's spectrum, shown to a transformer as the picture itself.

Where something stands in a picture is in the phases of its coefficients, which is hard to learn
from them and easy from pixels. The change of basis is linear and exact, so the generator still
draws tokens; only its transformer works on patches of a picture as small as the coefficients allow.
"""

import math

import torch
from torch import Tensor, nn

from softvq.tokenizer.spectral import Spectrum

PATCH = 6  # pixels of the small picture's patches: 8 x 8 of them hold 64 tokens of 32 channels


def picture_grid(tokens: int, channels: int) -> tuple[int, int]:
    """Rows and columns of patches that L tokens of C coefficients need."""
    side = math.ceil(Spectrum(tokens, channels).side / PATCH)
    return side, side


class Picture(nn.Module):
    """Spectral tokens [B, L, C] at unit variance <-> patches of their picture, [B, N, D].

    To patches: of the picture whose every coefficient counts alike, and of one in which they count
    by the square root of their standard deviation in photographs, nearer to what one sees. From
    patches: the coefficients of the picture that they draw.
    """

    weight: Tensor

    def __init__(self, tokens: int, channels: int):
        super().__init__()
        self.grid = picture_grid(tokens, channels)
        self.spectrum = Spectrum(tokens, channels)
        weight = self.spectrum.scale.sqrt()
        weight = weight / weight.square().mean().sqrt()
        self.register_buffer("weight", weight.view(tokens, channels), persistent=False)
        self.spectrum.scale = torch.ones_like(self.spectrum.scale)

    @property
    def inputs(self) -> int:
        """D of what :meth:`to_patches` gives."""
        return 2 * self.outputs

    @property
    def outputs(self) -> int:
        """D of what :meth:`from_patches` takes."""
        return 3 * PATCH**2

    def to_patches(self, x: Tensor) -> Tensor:
        """[B, L, C] -> [B, N, 2 * 3 * PATCH^2], patches row by row."""
        height, width = (PATCH * cells for cells in self.grid)
        views = [self.spectrum.inverse(y, height, width) for y in (x, x * self.weight)]
        cells = torch.cat(views, dim=1).unflatten(3, (-1, PATCH)).unflatten(2, (-1, PATCH))
        return cells.permute(0, 2, 4, 1, 3, 5).flatten(3).flatten(1, 2)

    def from_patches(self, patches: Tensor) -> Tensor:
        """[B, N, 3 * PATCH^2] -> [B, L, C] in float32."""
        cells = patches.unflatten(1, self.grid).unflatten(3, (3, PATCH, PATCH))
        return self.spectrum(cells.permute(0, 3, 1, 4, 2, 5).flatten(4).flatten(2, 3))
