"""Baselines: budgets checked by coding again, PCA against a singular value decomposition."""

import io
import itertools

import numpy as np
import pytest
from PIL import Image
from skimage.data import astronaut

from softvq.errors import UserError
from softvq.evaluate import baselines
from softvq.evaluate.baselines import CODECS, coded, encode

CROPS = [(0, 0), (100, 180), (200, 60), (300, 300), (60, 400)]
PHOTOS = np.stack([astronaut()[y : y + 48, x : x + 64] for y, x in CROPS])
GREY = PHOTOS[..., 1:2].repeat(3, axis=-1)


def noise(count: int, height: int, width: int, seed: int = 0) -> np.ndarray:
    return np.random.default_rng(seed).integers(0, 256, (count, height, width, 3), np.uint8)


def squared_error(a: np.ndarray, b: np.ndarray) -> float:
    return float(np.square(a.astype(float) - b).mean())


def reopened(file: bytes, grey: bool = False) -> np.ndarray:
    return np.asarray(Image.open(io.BytesIO(file)).convert("L" if grey else "RGB").convert("RGB"))


@pytest.mark.parametrize("grey", [False, True])
@pytest.mark.parametrize("kind", CODECS)
def test_files_take_the_highest_quality_of_the_budget(kind, grey):
    photos, budget = GREY if grey else PHOTOS, 1100
    result = coded(kind, photos, photos, bytes=budget, floats=0, grey=grey)
    assert result.fits and result.floats is None and result.rebuilt.dtype == np.uint8
    sizes, used = [], []
    for photo, rebuilt in zip(photos, result.rebuilt, strict=True):
        files = {q: encode(kind, photo, q, grey) for q in range(CODECS[kind][0], 101)}
        same = [q for q, file in files.items() if np.array_equal(reopened(file, grey), rebuilt)]
        fitting = [q for q in same if len(files[q]) <= budget]
        # Some file within the budget shows these pixels, and one quality more is over it.
        assert any(q == 100 or len(files[q + 1]) > budget for q in fitting)
        used += fitting
        sizes.append({len(files[q]) for q in fitting})
    assert sum(map(min, sizes)) <= result.bytes * len(photos) <= sum(map(max, sizes))
    least, most = map(int, result.setting.removeprefix("q=").split("-"))
    assert {least, most} <= set(used) and least < most


@pytest.mark.parametrize("kind", CODECS)
def test_more_bytes_are_not_worse(kind):
    errors = [
        squared_error(coded(kind, PHOTOS, PHOTOS, budget, 0, False).rebuilt, PHOTOS)
        for budget in (700, 1000, 2000, 4000, 10**6)
    ]
    assert errors == sorted(errors, reverse=True) and errors[0] > 2 * errors[-1]


@pytest.mark.parametrize("kind", CODECS)
def test_a_budget_below_the_smallest_file(kind):
    lowest = CODECS[kind][0]
    result = coded(kind, PHOTOS, PHOTOS, bytes=20, floats=0, grey=False)
    files = [encode(kind, photo, lowest, False) for photo in PHOTOS]
    assert not result.fits and result.setting == f"q={lowest}"
    assert result.bytes == np.mean([len(file) for file in files]) > 20
    assert np.array_equal(result.rebuilt, np.stack([reopened(file) for file in files]))


def test_a_grey_jpeg_has_one_channel():
    with Image.open(io.BytesIO(encode("jpeg", GREY[0], 50, True))) as file:
        assert file.mode == "L"
    assert len(encode("jpeg", GREY[0], 50, True)) < len(encode("jpeg", GREY[0], 50, False))
    for kind in (*CODECS, "thumbnail", "pca"):
        rebuilt = coded(kind, GREY, GREY, 900, 4, True).rebuilt
        assert (rebuilt == rebuilt[..., :1]).all()


def test_thumbnail_counts_its_numbers():
    # 48 x 64 in the proportions 3 : 4; with one channel more of it is left.
    expected = {(False, 36): "3x4", (False, 35): "2x3", (True, 36): "5x7", (True, 12): "3x4"}
    for (grey, floats), setting in expected.items():
        result = coded("thumbnail", GREY, GREY, 0, floats, grey)
        rows, columns = map(int, setting.split("x"))
        assert result.setting == setting and result.fits
        assert result.floats == result.bytes == rows * columns * (1 if grey else 3) <= floats
        assert result.rebuilt.shape == GREY.shape
    whole = coded("thumbnail", PHOTOS, PHOTOS, 0, 48 * 64 * 3, grey=False)
    assert whole.setting == "48x64" and np.array_equal(whole.rebuilt, PHOTOS)
    single = coded("thumbnail", PHOTOS, PHOTOS, 0, 2, grey=False)
    assert single.floats == 3 and not single.fits
    # One pixel is about the mean colour (bicubic weights are not quite even).
    assert np.abs(single.rebuilt[:, 0, 0] - PHOTOS.mean((1, 2))).max() < 12
    assert (single.rebuilt == single.rebuilt[:, :1, :1]).all()


def test_pca_with_all_components_gives_the_training_photos():
    train = noise(7, 6, 5)
    result = coded("pca", train, train, 0, floats=1000, grey=False)
    assert result.setting == "k=6" and result.floats == 6 and result.bytes == 24 and result.fits
    assert np.array_equal(result.rebuilt, train)
    grey = train[..., :1].repeat(3, axis=-1)
    result = coded("pca", grey, grey, 0, floats=1000, grey=True)
    assert result.floats == 6 and np.array_equal(result.rebuilt, grey)


def test_pca_is_the_singular_value_decomposition():
    # 80 x 60 x 3 numbers are several blocks of pixels, the last one of them not full.
    train, photos = noise(9, 80, 60), noise(4, 80, 60, seed=1)
    flat = train.reshape(9, -1).astype(float)
    mean = flat.mean(0)
    components = np.linalg.svd(flat - mean, full_matrices=False)[2][:3]
    expected = (photos.reshape(4, -1) - mean) @ components.T @ components + mean
    result = coded("pca", train, photos, 0, floats=3, grey=False)
    difference = result.rebuilt.reshape(4, -1) - expected.clip(0, 255)
    assert result.setting == "k=3" and np.abs(difference).max() <= 0.501  # rounding, and float32


def test_more_components_are_never_worse():
    train = np.stack([astronaut()[y : y + 32, 0:32] for y in range(0, 400, 20)])
    for photos in (train, PHOTOS[:, :32, :32]):
        results = [coded("pca", train, photos, 0, k, grey=False) for k in range(20)]
        errors = [squared_error(result.rebuilt, photos) for result in results]
        assert [result.floats for result in results] == list(range(20))
        assert all(after <= before + 0.1 for before, after in itertools.pairwise(errors))
        assert errors[-1] < errors[0] / 2


def test_pca_takes_many_training_photos_evenly(monkeypatch):
    monkeypatch.setattr(baselines, "MOST_TRAINING", 20)
    train = np.zeros((41, 2, 2, 3), np.uint8)
    train[1::2] = 255
    train[:20] = 0  # the first 20 would learn nothing
    result = coded("pca", train, train[-2:], 0, floats=5, grey=True)
    assert result.floats == 1 and np.array_equal(result.rebuilt, train[-2:])
    same = coded("pca", train[:1], train[:2], 0, floats=5, grey=True)
    assert same.floats == 0 and not same.rebuilt.any()  # nothing varies: the mean is left


def test_what_is_refused():
    with pytest.raises(UserError, match="unknown baseline 'jpeg2000'; known: jpeg, webp"):
        coded("jpeg2000", PHOTOS, PHOTOS, 100, 10, False)
    with pytest.raises(ValueError, match="training photos are"):
        coded("pca", noise(3, 10, 10), noise(3, 8, 8), 100, 10, False)
