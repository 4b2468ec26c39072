"""Pictures larger than a tokenizer's own: cut into overlapping tiles, each tile encoded by itself.

Tiles are as large as the images that the tokenizer was trained on, or as is asked, and overlap;
where they do, the decoded tiles are blended, so that no seam shows. Memory holds the picture, twice
while it is drawn, and one batch of tiles.
"""

from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

from softvq import images
from softvq.coding import size_of
from softvq.errors import UserError
from softvq.io import check_finite
from softvq.layers import evaluating
from softvq.quality import Budget, encode_within
from softvq.tokenizer.model import Tokenizer

AT_ONCE = 16  # tiles: a decoder's maps of 64 take more memory than the picture


@dataclass(frozen=True)
class Tiling:
    """Tiles of ``size`` (H, W) pixels that overlap by at least ``overlap``. UserError."""

    size: tuple[int, int]
    overlap: int

    def __post_init__(self) -> None:
        if not 0 <= self.overlap < min(self.size):
            raise UserError(
                f"tiles of {min(self.size)} pixels cannot overlap by {self.overlap}; give 0 to "
                f"{min(self.size) - 1}"
            )

    @classmethod
    def of(
        cls, tokenizer: Tokenizer, side: int | None = None, overlap: int | None = None
    ) -> "Tiling":
        """Of ``side`` pixels, None for a tokenizer's own; ``overlap`` None for an eighth of that.

        Raises UserError for tiles that the tokenizer cannot encode.
        """
        size = size_of(tokenizer) if side is None else (side, side)
        patch = getattr(tokenizer.config, "patch", 1)
        if size[0] % patch or max(size) > 4 * max(size_of(tokenizer)):
            raise UserError(
                f"tiles of {size[0]} pixels: the side must divide by {patch}, and be at most 4 "
                f"times the tokenizer's own {max(size_of(tokenizer))}"
            )
        return cls(size, min(size) // 8 if overlap is None else overlap)

    def grid(self, height: int, width: int) -> tuple[list[int], list[int]]:
        """Where rows and where columns of tiles begin over a picture, in pixels."""
        down, across = (
            starts(length, tile, self.overlap)
            for length, tile in zip((height, width), self.size, strict=True)
        )
        return down, across

    def count(self, height: int, width: int) -> int:
        """How many tiles cover a picture."""
        down, across = self.grid(height, width)
        return len(down) * len(across)


def starts(length: int, tile: int, overlap: int) -> list[int]:
    """Where tiles of ``tile`` pixels begin, so that they cover ``length`` and overlap at least
    ``overlap``; evenly spread, the last ends at the end. One at 0 if the length is no larger."""
    if length <= tile:
        return [0]
    steps = -(-(length - tile) // (tile - overlap))
    return [round(i * (length - tile) / steps) for i in range(steps + 1)]


def ramps(begins: list[int], tile: int) -> Tensor:
    """How much each tile counts at each of its pixels, [tiles, tile]: rising and falling linearly
    over what it shares with its neighbours. All tiles at a place add up to 1."""
    weights = torch.ones(len(begins), tile)
    for i in range(1, len(begins)):
        shared = begins[i - 1] + tile - begins[i]
        rising = (torch.arange(shared) + 0.5) / max(shared, 1)
        weights[i, :shared] *= rising
        weights[i - 1, tile - shared :] *= 1 - rising
    total = torch.zeros(begins[-1] + tile)  # where three or more meet it is not 1 yet
    for begin, weight in zip(begins, weights, strict=True):
        total[begin : begin + tile] += weight
    whole = [total[begin : begin + tile] for begin in begins]
    return weights / torch.stack(whole)


@dataclass
class TiledTokens:
    """The tokens of one large picture.

    latents: [tiles, k, C], row by row of tiles.  size: (H, W) of the picture.  lengths: how many
    tokens each tile has, int64 [tiles]; None for all k.  met: as in ``Tokens``, of each tile.
    """

    latents: Tensor
    tiling: Tiling
    size: tuple[int, int]
    lengths: Tensor | None = None
    met: Tensor | None = None

    @property
    def tokens(self) -> int:
        """How many tokens the picture takes."""
        if self.lengths is not None:
            return int(self.lengths.sum())
        return self.latents.shape[0] * self.latents.shape[1]


def encode_tiles(
    tokenizer: Tokenizer,
    image: Tensor,
    tokens: Budget = None,
    tiling: Tiling | None = None,
    batch: int = AT_ONCE,
) -> TiledTokens:
    """Image [3, H, W], uint8 or floats in [-1, 1], any size -> the tokens of its tiles.

    ``tokens``: how many of each tile, as in :mod:`softvq.coding`; a target is every tile's own.
    ``tiling``: None for ``Tiling.of(tokenizer)``. A side shorter than a tile
    is continued by its mirror image. Raises UserError.
    """
    tiling = tiling or Tiling.of(tokenizer)
    tile, (height, width) = tiling.size, image.shape[-2:]
    top, left = tiling.grid(height, width)
    found = []
    for places in _groups([(y, x) for y in top for x in left], batch):
        cut = [image[:, y : y + tile[0], x : x + tile[1]] for y, x in places]
        pixels = images.as_tensor(torch.stack([_filled(each, tile) for each in cut]))
        found.append(encode_within(tokenizer, pixels.to(tokenizer.device), tokens))
    most = max(some.latents.shape[1] for some in found)  # predicted, each batch has its own
    latents = [_longer(some.latents.cpu(), most) for some in found]
    return TiledTokens(
        check_finite(torch.cat(latents), "the encoder"), tiling, (height, width),
        _joined([some.lengths for some in found]), _joined([some.met for some in found]),
    )  # fmt: skip


def decode_tiles(tokenizer: Tokenizer, tiled: TiledTokens, batch: int = AT_ONCE) -> Tensor:
    """The picture again, [3, H, W] in [-1, 1], its tiles blended where they overlap."""
    tile, (height, width) = tiled.tiling.size, tiled.size
    top, left = tiled.tiling.grid(height, width)
    canvas = torch.zeros(3, max(height, tile[0]), max(width, tile[1]))
    places = [(i, j) for i in range(len(top)) for j in range(len(left))]
    down, across = ramps(top, tile[0]), ramps(left, tile[1])
    device = tokenizer.device
    rows = torch.arange(len(places)).split(batch)
    with evaluating(tokenizer):
        for group, some in zip(_groups(places, batch), rows, strict=True):
            lengths = None if tiled.lengths is None else tiled.lengths[some].to(device)
            pixels = tokenizer.decode(tiled.latents[some].to(device), tile, lengths)
            check_finite(pixels, "the decoder")
            for (i, j), picture in zip(group, pixels.float().clamp(-1, 1).cpu(), strict=True):
                weight = down[i][:, None] * across[j]
                canvas[:, top[i] : top[i] + tile[0], left[j] : left[j] + tile[1]] += (
                    weight * picture
                )
    return canvas[:, :height, :width]


def levels_of(image: Tensor) -> np.ndarray:
    """Floats [3, H, W] -> uint8 [H, W, 3], a strip of rows at a time: a large one is not held
    three times over."""
    strips = image.split(256, dim=1)
    return np.concatenate([images.to_uint8(strip) for strip in strips])


def _joined(parts: list[Tensor | None]) -> Tensor | None:
    known = [part.cpu() for part in parts if part is not None]
    return torch.cat(known) if known else None


def _longer(latents: Tensor, tokens: int) -> Tensor:
    return torch.nn.functional.pad(latents, (0, 0, 0, tokens - latents.shape[1]))


def _groups(places: list[tuple[int, int]], size: int) -> Iterator[list[tuple[int, int]]]:
    for first in range(0, len(places), size):
        yield places[first : first + size]


def _filled(image: Tensor, size: tuple[int, int]) -> Tensor:
    """[3, h, w] continued to ``size`` downwards and rightwards by its mirror images."""
    height, width = image.shape[-2:]
    for dim, have, want in ((1, height, size[0]), (2, width, size[1])):
        if have < want:
            index = torch.arange(want) % (2 * have)
            image = image.index_select(dim, torch.minimum(index, 2 * have - 1 - index))
    return image
