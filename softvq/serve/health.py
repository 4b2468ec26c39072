"""What can be said of a photo before any network sees it: dark, bright, blurred, grey, odd."""

from dataclasses import asdict, dataclass, fields

import numpy as np


@dataclass(frozen=True)
class Health:
    """Of a photo's levels in 0..1.

    brightness, contrast: mean and standard deviation of the luma.
    sharpness: log10 of the mean square of the luma's Laplacian: falls with blur, grows with noise.
    saturation: mean distance of the largest and the smallest channel.
    red, blue: mean of the channel less that of the luma: a colour cast.
    dark, bright: share of pixels below 0.04, above 0.96.
    """

    brightness: float
    contrast: float
    sharpness: float
    saturation: float
    red: float
    blue: float
    dark: float
    bright: float

    def vector(self) -> np.ndarray:
        """float64 [8]."""
        return np.array(list(asdict(self).values()))


NAMES = tuple(field.name for field in fields(Health))


def health(photo: np.ndarray) -> Health:
    """Of a photo, uint8 [H, W, 3]."""
    x = photo.astype(np.float32) / 255
    luma = x @ np.array([0.299, 0.587, 0.114], np.float32)
    inner = luma[1:-1, 1:-1]
    laplacian = luma[:-2, 1:-1] + luma[2:, 1:-1] + luma[1:-1, :-2] + luma[1:-1, 2:] - 4 * inner
    return Health(
        brightness=float(luma.mean()),
        contrast=float(luma.std()),
        sharpness=float(np.log10(np.square(laplacian).mean() + 1e-8)),
        saturation=float((x.max(2) - x.min(2)).mean()),
        red=float(x[..., 0].mean() - luma.mean()),
        blue=float(x[..., 2].mean() - luma.mean()),
        dark=float((luma < 0.04).mean()),
        bright=float((luma > 0.96).mean()),
    )
