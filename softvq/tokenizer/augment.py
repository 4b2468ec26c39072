"""DiffAugment (Zhao et al. 2020): what the discriminator sees is changed, differentiably.

Each operation is a draw and a pure function of images [B, 3, H, W] in [-1, 1] and that draw.
Every draw comes from torch's global generator.
"""

from collections.abc import Callable

import torch
from torch import Tensor

from softvq.processes import ours, whole

SHIFT = 0.125  # a picture moves by at most this share of its side (Zhao et al.)
CUTOUT = 0.2  # side of the grey square as a share of the picture's


def brightness(images: Tensor, draw: Tensor) -> Tensor:
    """Add -0.5 .. 0.5. draw: [B, 1, 1, 1] in [0, 1)."""
    return images + (draw - 0.5)


def saturation(images: Tensor, draw: Tensor) -> Tensor:
    """Scale the distance to grey by 0 .. 2. draw: [B, 1, 1, 1] in [0, 1)."""
    grey = images.mean(1, keepdim=True)
    return grey + (images - grey) * (2 * draw)


def contrast(images: Tensor, draw: Tensor) -> Tensor:
    """Scale the distance to the picture's mean by 0.5 .. 1.5. draw: [B, 1, 1, 1] in [0, 1)."""
    mean = images.mean((1, 2, 3), keepdim=True)
    return mean + (images - mean) * (draw + 0.5)


def color(images: Tensor, draw: Tensor) -> Tensor:
    """Brightness, saturation, contrast. draw: [3, B, 1, 1, 1] in [0, 1)."""
    return contrast(saturation(brightness(images, draw[0]), draw[1]), draw[2])


def translation(images: Tensor, down: Tensor, right: Tensor) -> Tensor:
    """Row i, column j shows what was at (i + down, j + right), grey outside. draws: int [B]."""
    height, width = images.shape[-2:]
    rows = torch.arange(height, device=images.device) + down[:, None]
    columns = torch.arange(width, device=images.device) + right[:, None]
    inside = ((rows >= 0) & (rows < height))[:, None, :, None]
    inside = inside & ((columns >= 0) & (columns < width))[:, None, None, :]
    rows = rows.clamp(0, height - 1)[:, None, :, None].expand_as(images)
    columns = columns.clamp(0, width - 1)[:, None, None, :].expand_as(images)
    return images.gather(2, rows).gather(3, columns) * inside


def cutout_side(length: int, share: float) -> int:
    """Pixels of a square's side that takes ``share`` of ``length``."""
    return int(length * share + 0.5)


def cutout(images: Tensor, row: Tensor, column: Tensor, share: float = CUTOUT) -> Tensor:
    """A grey rectangle, ``share`` of each side, centred at (row, column), int [B] each."""

    def covered(length: int, centre: Tensor) -> Tensor:
        side = cutout_side(length, share)
        offset = torch.arange(length, device=images.device) - (centre[:, None] - side // 2)
        return (offset >= 0) & (offset < side)

    height, width = images.shape[-2:]
    hole = covered(height, row)[:, :, None] & covered(width, column)[:, None, :]
    return images * ~hole[:, None]


def _color(images: Tensor, share: float) -> Tensor:
    count = whole(images.shape[0])
    return color(images, ours(torch.rand(3, count, 1, 1, 1, device=images.device), dim=1))


def _translation(images: Tensor, share: float) -> Tensor:
    batch, _, height, width = images.shape
    most = [int(length * SHIFT + 0.5) for length in (height, width)]
    down, right = (
        ours(torch.randint(-m, m + 1, (whole(batch),), device=images.device)) for m in most
    )
    return translation(images, down, right)


def _cutout(images: Tensor, share: float) -> Tensor:
    batch, _, height, width = images.shape
    # An even side has no middle pixel, so its centre may also lie on the far border.
    ends = [length + 1 - cutout_side(length, share) % 2 for length in (height, width)]
    row, column = (
        ours(torch.randint(0, end, (whole(batch),), device=images.device)) for end in ends
    )
    return cutout(images, row, column, share)


OPERATIONS: dict[str, Callable[[Tensor, float], Tensor]] = {
    "color": _color,
    "translation": _translation,
    "cutout": _cutout,
}


def diff_augment(images: Tensor, probability: float = 1.0, share: float = CUTOUT) -> Tensor:
    """Each operation, applied to each image with ``probability``; [B, 3, H, W], differentiable.

    ``share`` is the cut-out square's share of a side. With probability 0 nothing is drawn.
    """
    if probability == 0:
        return images
    for operation in OPERATIONS.values():
        chosen = torch.rand(whole(images.shape[0]), 1, 1, 1, device=images.device) < probability
        images = torch.where(ours(chosen), operation(images, share), images)
    return images
