"""Corruptions: closed forms, and a convolution by hand."""

import numpy as np
import pytest
from skimage.data import astronaut

from softvq.evaluate.corruptions import CORRUPTIONS

COLOUR = np.stack([astronaut()[:64, 200:280], astronaut()[100:164, 50:130]])
GREY = COLOUR[..., :1].repeat(3, axis=-1)


def flat(level: int, side: int = 128) -> np.ndarray:
    return np.full((2, side, side, 3), level, np.uint8)


@pytest.mark.parametrize("name", CORRUPTIONS)
def test_every_corruption(name):
    for photos in (COLOUR, GREY):
        before = photos.copy()
        once, again = CORRUPTIONS[name](photos, 3), CORRUPTIONS[name](photos, 3)
        assert once.shape == photos.shape and once.dtype == np.uint8
        assert np.array_equal(once, again) and np.array_equal(photos, before)
        assert not np.array_equal(once, photos)
        alone = CORRUPTIONS[name](photos[:1], 3)
        assert np.array_equal(alone[0], once[0])
    assert (once == once[..., :1]).all()  # grey stays grey


def test_noise_has_its_sigma():
    colour = flat(128)
    colour[..., 0] = 100
    for photos, channels in ((colour, 3), (flat(128), 1)):
        noisy = CORRUPTIONS["noise"](photos, 0)
        change = (noisy.astype(float) - photos)[..., :channels]
        # Rounding adds 1/12 to the variance; 5 standard errors of either estimate.
        assert abs(change.std() - np.sqrt(100 + 1 / 12)) < 5 * 10 / np.sqrt(2 * change.size)
        assert abs(change.mean()) < 5 * 10 / np.sqrt(change.size)
        assert np.corrcoef(change[0].ravel(), change[1].ravel())[0, 1] < 0.05
    assert not np.array_equal(noisy, CORRUPTIONS["noise"](photos, 1))
    black = CORRUPTIONS["noise"](flat(0), 0)
    assert abs((black == 0).mean() - 0.52) < 0.02  # clipped, not wrapped: P(x < 0.5) = 0.52


def test_blur_is_a_gaussian_of_one_pixel():
    photos = np.zeros((1, 15, 15, 3), np.uint8)
    photos[0, 7, 7] = 255
    offset = np.arange(15) - 7.0
    kernel = np.exp(-(offset**2) / 2)
    kernel /= kernel.sum()
    expected = 255 * np.outer(kernel, kernel)
    blurred = CORRUPTIONS["blur"](photos, 0)
    for channel in range(3):
        assert np.abs(blurred[0, ..., channel] - expected).max() <= 0.51
    assert np.array_equal(CORRUPTIONS["blur"](flat(77), 0), flat(77))  # no dark border


def test_jpeg_of_quality_50():
    # The first entry of the standard luminance table is 16 at quality 50 (ITU-T T.81, table K.1):
    # flat blocks come in steps of 16 / 8 = 2 levels about 128.
    levels = {int(CORRUPTIONS["jpeg"](flat(x, 16), 0)[0, 0, 0, 0]) for x in range(100, 160)}
    assert levels == set(range(100, 161, 2))


def test_brightness():
    ramp = np.arange(256, dtype=np.uint8).reshape(1, 16, 16, 1).repeat(3, axis=-1)
    for name, factor in (("dark", 0.7), ("bright", 1.3)):
        changed = CORRUPTIONS[name](ramp, 0).astype(float)
        assert np.abs(changed - np.minimum(factor * ramp, 255)).max() <= 0.501
