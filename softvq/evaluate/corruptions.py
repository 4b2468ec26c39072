"""What a camera does to photos on a bad day. Each: (uint8 [N, H, W, 3], seed) -> the same shape."""

import io
from collections.abc import Callable

import numpy as np
from PIL import Image
from scipy.ndimage import gaussian_filter

SIGMA = 10.0  # of the noise, in grey levels of 0..255
BLUR = 1.0  # standard deviation of the Gaussian, in pixels
QUALITY = 50  # of the JPEG file


def noise(photos: np.ndarray, seed: int) -> np.ndarray:
    """Add Gaussian noise of ``SIGMA``, clipped at black and white; a grey photo stays grey.

    A photo's noise depends on ``seed`` and its place alone, not on the photos after it.
    """
    noisy = np.empty_like(photos)
    for i, photo in enumerate(photos):
        channels = 1 if (photo == photo[..., :1]).all() else 3
        shape = (*photo.shape[:2], channels)
        noisy[i] = to_levels(photo + np.random.default_rng((seed, i)).normal(0, SIGMA, shape))
    return noisy


def blur(photos: np.ndarray, seed: int) -> np.ndarray:
    """Convolve with a Gaussian of ``BLUR``; beyond the border the nearest pixel goes on."""
    blurred = np.empty_like(photos)
    for i, photo in enumerate(photos):
        smooth = gaussian_filter(photo.astype(np.float32), (BLUR, BLUR, 0), mode="nearest")
        blurred[i] = to_levels(smooth)
    return blurred


def jpeg(photos: np.ndarray, seed: int) -> np.ndarray:
    """Write and read as JPEG of ``QUALITY``, with colour at half the resolution as is usual."""
    decoded = np.empty_like(photos)
    for i, photo in enumerate(photos):
        file = io.BytesIO()
        Image.fromarray(photo).save(file, format="jpeg", quality=QUALITY, subsampling="4:2:0")
        decoded[i] = np.asarray(Image.open(file))
    return decoded


def dark(photos: np.ndarray, seed: int) -> np.ndarray:
    """Multiply by 0.7."""
    return to_levels(photos * np.float32(0.7))


def bright(photos: np.ndarray, seed: int) -> np.ndarray:
    """Multiply by 1.3, clipped at white."""
    return to_levels(photos * np.float32(1.3))


def to_levels(values: np.ndarray) -> np.ndarray:
    """Grey levels as a picture has them: rounded, within 0..255, uint8."""
    return np.rint(values).clip(0, 255).astype(np.uint8)


CORRUPTIONS: dict[str, Callable[[np.ndarray, int], np.ndarray]] = {
    "noise": noise,
    "blur": blur,
    "jpeg": jpeg,
    "dark": dark,
    "bright": bright,
}
