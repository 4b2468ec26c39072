"""Pictures larger than a tokenizer's own: cut into overlapping tiles, each tile encoded by itself.

Tiles are as large as the images that the tokenizer was trained on, and overlap; where they do, the
decoded tiles are blended, so that no seam shows. Memory holds the picture and one batch of tiles.
"""

from collections.abc import Iterator
from dataclasses import dataclass

import torch
from torch import Tensor

from softvq.coding import BATCH, evaluating, size_of
from softvq.errors import UserError
from softvq.io import check_finite
from softvq.tokenizer.model import Tokenizer


def starts(length: int, tile: int, overlap: int) -> list[int]:
    """Where tiles of ``tile`` pixels begin, so that they cover ``length`` and overlap at least
    ``overlap``; evenly spread, the last ends at the end. One at 0 if the length is no larger."""
    if not 0 <= overlap < tile:
        raise UserError(f"tiles of {tile} pixels cannot overlap by {overlap}; give 0 to {tile - 1}")
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

    latents: [rows * columns, k, C], tile by tile, row by row.  top, left: where rows and columns
    of tiles begin, in pixels.  size: (H, W) of the picture.
    """

    latents: Tensor
    top: list[int]
    left: list[int]
    size: tuple[int, int]

    @property
    def tokens(self) -> int:
        """How many tokens the picture takes."""
        return self.latents.shape[0] * self.latents.shape[1]


def encode_tiles(
    tokenizer: Tokenizer,
    image: Tensor,
    tokens: int | None = None,
    overlap: int | None = None,
    batch: int = BATCH,
) -> TiledTokens:
    """Image [3, H, W] in [-1, 1] -> the tokens of its tiles, ``tokens`` of each (nested; or all).

    ``overlap`` in pixels; None for an eighth of a tile. A side shorter than a tile is continued by
    its mirror image. Raises UserError.
    """
    tile = size_of(tokenizer)
    overlap = min(tile) // 8 if overlap is None else overlap
    height, width = image.shape[-2:]
    top, left = starts(height, tile[0], overlap), starts(width, tile[1], overlap)
    device = tokenizer.latent_mean.device
    found = []
    with evaluating(tokenizer):
        for places in _groups([(y, x) for y in top for x in left], batch):
            cut = [image[:, y : y + tile[0], x : x + tile[1]] for y, x in places]
            pixels = torch.stack([_filled(each, tile) for each in cut]).to(device)
            found.append(tokenizer.encode(pixels, tokens=tokens).latents.cpu())
    latents = check_finite(torch.cat(found), "the encoder")
    return TiledTokens(latents, top, left, (height, width))


def decode_tiles(tokenizer: Tokenizer, tiled: TiledTokens, batch: int = BATCH) -> Tensor:
    """The picture again, [3, H, W] in [-1, 1], its tiles blended where they overlap."""
    tile = size_of(tokenizer)
    height, width = tiled.size
    device = tokenizer.latent_mean.device
    canvas = torch.zeros(3, max(height, tile[0]), max(width, tile[1]))
    places = [(i, j) for i in range(len(tiled.top)) for j in range(len(tiled.left))]
    down, across = ramps(tiled.top, tile[0]), ramps(tiled.left, tile[1])
    latents = iter(tiled.latents.split(batch))
    with evaluating(tokenizer):
        for group in _groups(places, batch):
            pixels = tokenizer.decode(next(latents).to(device)).float().clamp(-1, 1).cpu()
            check_finite(pixels, "the decoder")
            for (i, j), picture in zip(group, pixels, strict=True):
                y, x = tiled.top[i], tiled.left[j]
                weight = down[i][:, None] * across[j]
                canvas[:, y : y + tile[0], x : x + tile[1]] += weight * picture
    return canvas[:, :height, :width]


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
