"""Perceptual distances that need no download: SSIM at several scales, and the eye's.

SSIM (Wang et al. 2004) compares local means, contrasts and correlation; MS-SSIM (Wang et al. 2003)
does so down a pyramid, and Zhao et al. (2017) train with it beside L1 or L2. Here the local
statistics are box means instead of Gaussian windows: one pooling each.
"""

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from softvq.eye import Eye
from softvq.layers import full_precision, unit

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


# The mean distance of each stage between 256 px photos and their 26 x 26 thumbnails enlarged again
# (tools/eye_distances.py): every stage counts the same, and 1 means as far as such a thumbnail.
TYPICAL = {"block2": 0.9728, "block4": 1.0920, "block10": 0.9362, "block15": 1.1154}


class EyeDistance(nn.Module):
    """How different two pictures look to the eye: images [B, 3, H, W] in [-1, 1] twice -> [B].

        mean over stages s of   mean over places |u_s(a) - u_s(b)|^2 / t_s

    with u_s the stage's features, scaled to length 1 over channels as in LPIPS (Zhang et al. 2018),
    and t_s the typical distance of that stage, so that no stage rules: at 1 two pictures are as far
    apart as a 256 px photo and its 26 x 26 thumbnail enlarged, which holds as many numbers as 64
    tokens of 32 channels. 0 for equal images. Images of any one size; it is the eye's view at that
    size. Frozen, float32 whatever the autocast; gradients flow to images that ask for them.
    """

    def __init__(self, eye: Eye | None = None):
        super().__init__()
        self.eye = Eye.shipped() if eye is None else eye

    def views(self, images: Tensor) -> dict[str, Tensor]:
        """What the eye sees of images [B, 3, H, W]: features u_s of each stage, [B, C, h, w]."""
        with full_precision(images):
            return {name: unit(x) for name, x in self.eye.stages(images.float()).items()}

    def stages(self, a: dict[str, Tensor], b: dict[str, Tensor]) -> dict[str, Tensor]:
        """Distances of each stage between two views, [B] each in 0 .. 4, not yet weighted."""
        return {name: (a[name] - b[name]).square().sum(1).mean((1, 2)) for name in TYPICAL}

    def between(self, a: dict[str, Tensor], b: dict[str, Tensor]) -> Tensor:
        """The distance of images by their ``views``, [B]."""
        distances = self.stages(a, b)
        return torch.stack([distances[name] / TYPICAL[name] for name in TYPICAL]).mean(0)

    def forward(self, a: Tensor, b: Tensor) -> Tensor:
        return self.between(self.views(a), self.views(b))
