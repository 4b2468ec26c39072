"""How close two pictures are, pixel by pixel: PSNR, SSIM, MS-SSIM.

Every function takes two batches of colour pictures of one shape, numpy or torch, each either
uint8 in 0..255 or floats in [-1, 1]; channels may come first or last. The ``*_per_image``
functions return float64 [B]; the short names return the mean of the per-image values, which is
not the PSNR of the mean error. All arithmetic is float64 on the scale [0, 1].
Floats are taken as they are: round to 8 bits first (``images.to_uint8``) to measure what a saved
file holds. ValueError for other shapes, and for two batches of different shapes.
"""

import numpy as np
import torch
from torch import Tensor

Pictures = np.ndarray | Tensor

WINDOW = 11  # pixels across SSIM's Gaussian window, sigma 1.5 (Wang et al. 2004)
BORDERS = ("crop", "reflect")


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


def psnr_per_image(a: Pictures, b: Pictures) -> np.ndarray:
    """Peak signal-to-noise ratio in dB, [B]: -10 log10(mean squared error), peak 1.

    Infinite for equal pictures.
    """
    x, y = _pair(a, b)
    return (-10 * (x - y).square().mean(dim=(1, 2, 3)).log10()).cpu().numpy()


def ssim_per_image(a: Pictures, b: Pictures, border: str = "crop") -> np.ndarray:
    """Structural similarity of each pair, [B], at most 1 (Wang et al. 2004, eq. 13).

    Gaussian window of 11 pixels, sigma 1.5, K = (0.01, 0.03), population covariance, mean over
    channels. Programs differ at the borders by up to 0.01, so a figure must say which was used:

    crop     windows inside the picture only, as in the paper; scikit-image's gaussian_weights
    reflect  the picture is continued by reflection; what torchmetrics returns

    ValueError below 11 pixels a side.
    """
    # Imported here: with its dependencies torchmetrics takes seconds.
    from torchmetrics.functional.image import structural_similarity_index_measure

    if border not in BORDERS:
        raise ValueError(f"border '{border}' is none of {', '.join(BORDERS)}")
    x, y = _pair(a, b, smallest=WINDOW)
    # data_range must be given: by default torchmetrics takes that of the batch at hand.
    _, maps = structural_similarity_index_measure(
        x, y, data_range=1.0, reduction="none", return_full_image=True
    )
    margin = WINDOW // 2 if border == "crop" else 0
    maps = maps[:, :, margin : x.shape[2] - margin, margin : x.shape[3] - margin]
    return maps.mean(dim=(1, 2, 3)).cpu().numpy()


def ms_ssim_per_image(a: Pictures, b: Pictures) -> np.ndarray:
    """SSIM over five scales, [B] (Wang et al. 2003); borders by reflection, as in torchmetrics.

    ValueError below 161 pixels a side: the fifth scale must hold a window.
    """
    from torchmetrics.functional.image import multiscale_structural_similarity_index_measure

    x, y = _pair(a, b, smallest=(WINDOW - 1) * 2**4 + 1)
    values = multiscale_structural_similarity_index_measure(x, y, data_range=1.0, reduction="none")
    return values.cpu().numpy()


def psnr(a: Pictures, b: Pictures) -> float:
    """Mean of :func:`psnr_per_image`, dB."""
    return float(psnr_per_image(a, b).mean())


def ssim(a: Pictures, b: Pictures, border: str = "crop") -> float:
    """Mean of :func:`ssim_per_image`."""
    return float(ssim_per_image(a, b, border).mean())


def ms_ssim(a: Pictures, b: Pictures) -> float:
    """Mean of :func:`ms_ssim_per_image`."""
    return float(ms_ssim_per_image(a, b).mean())
