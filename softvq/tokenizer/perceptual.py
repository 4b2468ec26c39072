"""A perceptual distance that needs no downloaded weights: SSIM at several scales.

SSIM (Wang et al. 2004) compares local means, contrasts and correlation; MS-SSIM (Wang et al. 2003)
does so down a pyramid, and Zhao et al. (2017) train with it beside L1 or L2. Here the local
statistics are box means instead of Gaussian windows: one pooling each.
"""

import torch
from torch import Tensor
from torch.nn import functional as F

C1 = (0.01 * 2) ** 2  # Wang et al.'s constants for a data range of 2
C2 = (0.03 * 2) ** 2


def ssim_map(a: Tensor, b: Tensor, window: int = 7) -> Tensor:
    """Local SSIM of images [B, 3, H, W] in [-1, 1] over box windows -> [B, 3, H', W']."""
    window = min(window, *a.shape[-2:])

    def mean(x: Tensor) -> Tensor:
        return F.avg_pool2d(x, window, stride=1)

    mean_a, mean_b = mean(a), mean(b)
    variance_a = mean(a * a) - mean_a**2
    variance_b = mean(b * b) - mean_b**2
    covariance = mean(a * b) - mean_a * mean_b
    luminance = (2 * mean_a * mean_b + C1) / (mean_a**2 + mean_b**2 + C1)
    structure = (2 * covariance + C2) / (variance_a + variance_b + C2)
    return luminance * structure


def structural_dissimilarity(a: Tensor, b: Tensor, scales: int = 3) -> Tensor:
    """Images [B, 3, H, W] in [-1, 1] -> scalar: 1 - SSIM, averaged over a pyramid of ``scales``.

    0 for equal images; at most 2. Each scale halves the side; a side never goes below 8 pixels.
    """
    a, b = a.float(), b.float()
    total = torch.zeros((), device=a.device)
    used = 0
    for _ in range(scales):
        total = total + (1 - ssim_map(a, b)).mean()
        used += 1
        if min(a.shape[-2:]) < 16:
            break
        a, b = F.avg_pool2d(a, 2), F.avg_pool2d(b, 2)
    return total / used
