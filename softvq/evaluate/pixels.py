"""How close two pictures are: PSNR, SSIM, LPIPS, the eye; over whole pictures or inside masks.

Every function takes two batches of colour pictures of one shape, numpy or torch, each either
uint8 in 0..255 or floats in [-1, 1]; channels may come first or last. The ``*_per_image``
functions return float64 [B]; the short names return the mean of the per-image values, which is
not the PSNR of the mean error. All arithmetic but the networks' is float64 on the scale [0, 1].
Floats are taken as they are: round to 8 bits first (``images.to_uint8``) to measure what a saved
file holds. ValueError for other shapes, and for two batches of different shapes.

``mask`` [B, H, W], true or nonzero inside, restricts a measure to a region of each picture
(:func:`box_masks` makes masks of boxes). A picture whose mask is empty has no value: nan per image,
left out of the mean, and a ValueError if no picture has one.
"""

from collections.abc import Iterator, Sequence

import numpy as np
import torch
from torch import Tensor
from torch.nn import functional as F

from softvq.tokenizer.lpips import LPIPS
from softvq.tokenizer.perceptual import EyeDistance

Pictures = np.ndarray | Tensor
Masks = np.ndarray | Tensor | None
Box = tuple[int, int, int, int]

WINDOW, SIGMA = 11, 1.5  # pixels across SSIM's Gaussian window (Wang et al. 2004)
K1, K2 = 0.01, 0.03
BORDERS = ("crop", "reflect")
AT_ONCE = 32  # pairs of pictures


def _unit(pictures: Pictures) -> Tensor:
    """uint8 or [-1, 1] floats -> float64 [B, 3, H, W] in [0, 1]."""
    x = torch.as_tensor(pictures).detach()
    if x.ndim != 4 or 3 not in (x.shape[1], x.shape[3]):
        raise ValueError(f"expected pictures [B, 3, H, W] or [B, H, W, 3], got {list(x.shape)}")
    if x.dtype != torch.uint8 and not x.is_floating_point():
        raise ValueError(f"expected uint8 or floating-point pictures, got {x.dtype}")
    x = x if x.shape[1] == 3 else x.permute(0, 3, 1, 2)
    return x.double() / 255 if x.dtype == torch.uint8 else (x.double() + 1) / 2


def _pair(a: Pictures, b: Pictures, smallest: int = 1) -> tuple[Tensor, Tensor]:
    x, y = _unit(a), _unit(b)
    if x.shape != y.shape:
        raise ValueError(f"two batches of different shapes: {list(x.shape)} and {list(y.shape)}")
    if min(x.shape[2:]) < smallest:
        raise ValueError(f"{x.shape[2]}x{x.shape[3]} pixels: at least {smallest} a side are needed")
    return x, y.to(x.device)


def _pieces(a: Pictures, b: Pictures, mask: Masks) -> Iterator[tuple[Pictures, Pictures, Masks]]:
    """Some pairs at a time: in float64, with what is made of them, 600 would take gigabytes."""
    for first in range(0, max(len(a), len(b), 1), AT_ONCE):
        piece = slice(first, first + AT_ONCE)
        yield a[piece], b[piece], None if mask is None else mask[piece]


def _inside(mask: Masks, like: Tensor) -> Tensor:
    """The mask as booleans [B, H, W], all true for None."""
    size = [like.shape[0], *like.shape[2:]]
    if mask is None:
        return torch.ones(size, dtype=torch.bool, device=like.device)
    inside = torch.as_tensor(mask).to(like.device) != 0
    if list(inside.shape) != size:
        raise ValueError(f"expected a mask of shape {size}, got {list(inside.shape)}")
    return inside


def _mean(values: Tensor, inside: Tensor) -> Tensor:
    """Mean of values [B, H, W] over the pixels inside, [B]; nan where there is none."""
    return (values * inside).sum(dim=(1, 2)) / inside.sum(dim=(1, 2))


def _over_images(values: np.ndarray) -> float:
    known = values[~np.isnan(values)]
    if not len(known):
        raise ValueError("every mask is empty: nothing to measure")
    return float(known.mean())


def box_masks(boxes: Sequence[Sequence[Box]], height: int, width: int) -> np.ndarray:
    """Masks [B, height, width] of each picture's boxes (left, top, right, bottom).

    In pixels, as Pillow counts: right and bottom are the first column and row outside. Several
    boxes of one picture are one region; parts outside the picture are ignored.
    """
    masks = np.zeros((len(boxes), height, width), dtype=bool)
    for mask, some in zip(masks, boxes, strict=True):
        for left, top, right, bottom in some:
            mask[max(top, 0) : max(bottom, 0), max(left, 0) : max(right, 0)] = True
    return masks


def psnr_per_image(a: Pictures, b: Pictures, mask: Masks = None) -> np.ndarray:
    """Peak signal-to-noise ratio in dB, [B]: -10 log10(mean squared error), peak 1.

    Infinite for equal pictures. With a mask the mean is over the channels of the pixels inside.
    """
    return np.concatenate([_psnr(*some) for some in _pieces(a, b, mask)])


def _psnr(a: Pictures, b: Pictures, mask: Masks) -> np.ndarray:
    x, y = _pair(a, b)
    error = _mean((x - y).square().mean(dim=1), _inside(mask, x))
    return (-10 * error.log10()).cpu().numpy()


def ssim_per_image(
    a: Pictures, b: Pictures, border: str = "crop", mask: Masks = None
) -> np.ndarray:
    """Structural similarity of each pair, [B], at most 1 (Wang et al. 2004, eq. 13).

    Gaussian window of 11 pixels, sigma 1.5, K = (0.01, 0.03), population covariance, mean over
    channels. Programs differ at the borders by up to 0.01, so a figure must say which was used:

    crop     windows inside the picture only, as in the paper; scikit-image's gaussian_weights
    reflect  the picture is continued by reflection; what torchmetrics returns

    With a mask, the mean is over the windows centred on a pixel inside. ValueError below 11 pixels
    a side.
    """
    if border not in BORDERS:
        raise ValueError(f"border '{border}' is none of {', '.join(BORDERS)}")
    return np.concatenate([_ssim(*some, border) for some in _pieces(a, b, mask)])


def _ssim(a: Pictures, b: Pictures, mask: Masks, border: str) -> np.ndarray:
    x, y = _pair(a, b, smallest=WINDOW)
    inside, margin = _inside(mask, x), WINDOW // 2
    if border == "reflect":
        x, y = (F.pad(z, [margin] * 4, mode="reflect") for z in (x, y))
    else:
        inside = inside[:, margin:-margin, margin:-margin]
    down, across = (_windows(size).to(x.device) for size in x.shape[2:])
    mean_x, mean_y, xx, yy, xy = (down @ z @ across.T for z in (x, y, x * x, y * y, x * y))
    xx, yy, xy = xx - mean_x**2, yy - mean_y**2, xy - mean_x * mean_y
    luminance = (2 * mean_x * mean_y + K1**2) / (mean_x**2 + mean_y**2 + K1**2)
    structure = (2 * xy + K2**2) / (xx + yy + K2**2)
    return _mean((luminance * structure).mean(dim=1), inside).cpu().numpy()


def _windows(size: int) -> Tensor:
    """Row i of [size - 10, size] weighs the window that starts at i; Gaussian, float64.

    Products with these matrices are 20 times faster than torchmetrics' convolutions on a CPU.
    """
    weights = torch.exp(-0.5 * ((torch.arange(WINDOW).double() - WINDOW // 2) / SIGMA) ** 2)
    rows = [F.pad(weights, (i, size - WINDOW - i)) for i in range(size - WINDOW + 1)]
    return torch.stack(rows) / weights.sum()


@torch.no_grad()
def lpips_per_image(a: Pictures, b: Pictures, network: LPIPS, mask: Masks = None) -> np.ndarray:
    """Perceptual distance of each pair, [B], 0 for equal ones (Zhang et al. 2018).

    ``network`` as :meth:`LPIPS.from_file` opens it; computed where and in the precision it is in.
    With a mask: the distance of ``a`` to itself with the region taken from ``b``, over the region's
    share of the picture, so that the whole picture as a mask changes nothing. The network sees past
    the region's edge, so regions much smaller than 16 pixels are judged with their surroundings.
    """
    x, y = _pair(a, b)
    inside = _inside(mask, x)
    weight = next(network.parameters())
    y = torch.where(inside[:, None], y, x)
    x, y = ((2 * z - 1).to(weight.device, weight.dtype) for z in (x, y))
    distance = network(x, y).double().cpu()
    return (distance / inside.double().mean(dim=(1, 2)).cpu()).numpy()


@torch.no_grad()
def eye_distance(a: Pictures, b: Pictures, network: EyeDistance | None = None) -> np.ndarray:
    """How different each pair looks to the eye in the package, [B]; 0 for equal ones.

    1 is about what a 256 px photo differs from its 26 x 26 thumbnail; see :class:`EyeDistance`.
    Looked at in the size that the pictures have, float32. ``network``: one that is open already.
    """
    network = EyeDistance() if network is None else network
    device = next(network.parameters()).device
    found = []
    for first in range(0, len(a), AT_ONCE):
        pair = _pair(a[first : first + AT_ONCE], b[first : first + AT_ONCE])
        found.append(network(*((2 * x - 1).float().to(device) for x in pair)).double().cpu())
    return torch.cat(found).numpy()


def psnr(a: Pictures, b: Pictures, mask: Masks = None) -> float:
    """Mean of :func:`psnr_per_image`, dB."""
    return _over_images(psnr_per_image(a, b, mask))


def ssim(a: Pictures, b: Pictures, border: str = "crop", mask: Masks = None) -> float:
    """Mean of :func:`ssim_per_image`."""
    return _over_images(ssim_per_image(a, b, border, mask))


def lpips(a: Pictures, b: Pictures, network: LPIPS, mask: Masks = None) -> float:
    """Mean of :func:`lpips_per_image`."""
    return _over_images(lpips_per_image(a, b, network, mask))
