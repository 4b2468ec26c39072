"""Regions: geometry against images.fit, contrast of disks erased, halved and kept, brute force."""

import math
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from softvq import images
from softvq.data import open_store
from softvq.errors import UserError
from softvq.evaluate.regions import (
    Region,
    box_cover,
    contrast_kept,
    find_regions,
    smallest_surviving,
)
from softvq.study.judging.measure import psnr_inside


def disk(size: int, y: float, x: float, diameter: float) -> np.ndarray:
    """bool [size, size], true within a disk."""
    rows, columns = np.mgrid[:size, :size]
    return np.hypot(rows - y, columns - x) <= diameter / 2


def grey(levels: np.ndarray) -> np.ndarray:
    return np.repeat(levels.astype(np.uint8)[..., None], 3, axis=-1)


MASK = disk(64, 30, 28, 11)
DARK = grey(np.where(MASK, 60, 180))
EMPTY = grey(np.full((64, 64), 180))
HALF = grey(np.where(MASK, 120, 180))


@pytest.mark.parametrize("rebuilt, kept", [(DARK, 1.0), (HALF, 0.5), (EMPTY, 0.0)])
def test_contrast_of_one_dark_disk(rebuilt, kept):
    assert contrast_kept(DARK, rebuilt, MASK) == pytest.approx(kept, abs=1e-12)
    brighter = (rebuilt.astype(int) + 40).astype(np.uint8)
    assert contrast_kept(DARK, brighter, MASK) == pytest.approx(kept, abs=1e-12)
    left, top, right, bottom = 22, 24, 35, 37  # a box round the disk serves as well
    box = np.zeros_like(MASK)
    box[top:bottom, left:right] = True
    assert contrast_kept(DARK, rebuilt, box) == pytest.approx(kept, abs=1e-12)


def test_contrast_is_the_slope_on_the_widened_region():
    random = np.random.default_rng(0)
    x, y = (random.integers(0, 256, (40, 48, 3), dtype=np.uint8) for _ in range(2))
    for mask in (
        np.eye(40, 48, dtype=bool),
        np.arange(40 * 48).reshape(40, 48) == 5,
        x[..., 0] < 9,
    ):
        reach = max(2, math.sqrt(4 * mask.sum() / math.pi) / 4)
        ys, xs = np.nonzero(mask)
        rows, columns = np.mgrid[:40, :48]
        away = np.hypot(rows[..., None] - ys, columns[..., None] - xs).min(axis=-1)
        a, b = ((p @ [0.299, 0.587, 0.114])[away <= reach] for p in (x, y))
        assert contrast_kept(x, y, mask) == pytest.approx(np.polyfit(a, b, 1)[0], abs=1e-9)


def test_contrast_looks_no_further():
    """What is far from the region does not count, and what is flat has no contrast to keep."""
    far = DARK.copy()
    far[:10] = 0
    assert contrast_kept(DARK, far, MASK) == pytest.approx(1.0)
    assert math.isnan(contrast_kept(EMPTY, DARK, MASK))
    assert math.isnan(contrast_kept(DARK, DARK, np.zeros_like(MASK)))


def test_smallest_surviving_by_brute_force():
    random = np.random.default_rng(0)
    for _ in range(200):
        n = int(random.integers(1, 15))
        diameters, contrast = random.integers(1, 9, n).astype(float), random.random(n)
        least, share = random.choice([0.2, 0.5]), random.choice([0.5, 0.75, 0.9])
        fine = [d for d in diameters if (contrast[diameters >= d] >= least).mean() >= share - 1e-9]
        expected = min(fine) if fine else None
        assert smallest_surviving(diameters, contrast, least, share) == expected


def test_smallest_surviving():
    sizes = np.arange(1.0, 21)
    assert smallest_surviving(sizes, sizes >= 8) == 7.0  # 13 of 14
    assert smallest_surviving(sizes, np.zeros(20)) is None
    assert smallest_surviving(sizes, np.ones(20)) == 1.0
    assert smallest_surviving(np.array([3.0, 5]), np.array([1, np.nan])) == 3.0
    assert smallest_surviving(np.zeros(0), np.zeros(0)) is None


@pytest.mark.parametrize("fit", ["crop", "stretch"])
@pytest.mark.parametrize(
    "file, size", [((90, 128), (64, 64)), ((75, 150), (48, 72)), ((100, 90), (50, 45))]
)
def test_box_cover_is_where_fit_puts_a_box(file, size, fit):
    """A white box, drawn into the file and fitted: Pillow's filter is smoother and rings a bit."""
    height, width = file
    box = (width // 5, height // 4, width // 2, height - 2)
    drawn = np.zeros((height, width, 3), np.uint8)
    drawn[box[1] : box[3], box[0] : box[2]] = 255
    fitted = np.asarray(images.fit(Image.fromarray(drawn), size, fit))[..., 0] / 255
    covered = box_cover(box, file, size, fit)
    assert covered.shape == size and 0 <= covered.min() and covered.max() <= 1 + 1e-12
    assert np.abs(covered - fitted).max() < 0.25
    assert covered.sum() == pytest.approx(fitted.sum(), rel=0.01)
    np.testing.assert_allclose(box_cover((0, 0, width, height), file, size, fit), 1)


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """Photos of 40 x 60 (height, width) pixels, fitted to 20 x 20: half the size, 10 cut off."""
    for name in ("val/bad/a.png", "val/bad/b.png", "val/good/a.png", "train/bad/c.png"):
        images.save_png(Image.new("RGB", (60, 40), "grey"), tmp_path / "photos" / name)
    images.save_png(Image.new("RGB", (60, 40), "grey"), tmp_path / "photos/train/good/d.png")
    return tmp_path


def store(folder: Path, fit: str = "crop"):
    return open_store(
        folder / "photos", "val", (20, 20), folder / "cache", 1, fit=fit, progress=False
    )


def test_masks_become_connected_regions(folder: Path):
    mask = np.zeros((40, 60), bool)
    mask[4:12, 14:22] = True  # 8 x 8, fitted 4 x 4 from row 2, column 2
    mask[20:24, 30:34] = True  # 4 x 4 -> 2 x 2 from (10, 10)
    mask[24:28, 34:38] = True  # touches its corner: one region
    mask[:, :6] = True  # in the overhang
    images.save_png(Image.fromarray(mask), folder / "masks/val/bad/a.png")
    images.save_png(Image.fromarray(mask & False), folder / "masks/val/bad/b.png")
    photos = store(folder)
    found = find_regions(photos, folder / "photos", masks=folder / "masks")
    assert [photos.names[r.photo] for r in found] == ["val/bad/a.png"] * 2
    first, second = found
    expected = np.zeros((20, 20), bool)
    expected[2:6, 2:6] = True
    np.testing.assert_array_equal(first.mask, expected)
    assert first.box == (2, 2, 6, 6)
    assert first.diameter == pytest.approx(math.sqrt(4 * 16 / math.pi))
    assert first.original == pytest.approx(math.sqrt(4 * 64 / math.pi))
    assert second.mask[10:12, 10:12].all() and second.mask[12:14, 12:14].all()
    assert find_regions(photos, folder / "photos") == []
    with pytest.raises(UserError, match="no mask for any photo"):
        find_regions(photos, folder / "photos", masks=folder / "masks", classes={"good"})


def write(folder: Path, text: str) -> Path:
    (folder / "boxes.csv").write_text(text)
    return folder / "boxes.csv"


def test_boxes_become_regions(folder: Path):
    table = write(
        folder,
        "split,name,x1,y1,x2,y2,type\n"
        "val,a,14,4,22,12,hole\n"
        "val,b.png,51,0,60,40,cut off\n"
        "val,b.png,46,38,60,44,corner\n"
        "val,b,21,21,22,22,tiny\n"
        "train,a,0,0,60,40,another split\n"
        "val,unknown,0,0,9,9,\n",
    )
    photos = store(folder)
    found = find_regions(photos, folder / "photos", boxes=table, classes={"bad"})
    assert [photos.names[r.photo][4:9] for r in found] == ["bad/a", "bad/b", "bad/b"]
    assert [r.box for r in found] == [(2, 2, 6, 6), (18, 19, 20, 20), (5, 10, 6, 11)]
    assert found[0].mask.sum() == 16
    assert [r.original for r in found] == pytest.approx(
        [math.sqrt(4 * area / math.pi) for area in (64, 8, 1)]
    )
    assert [r.diameter for r in found] == pytest.approx([r.original / 2 for r in found])
    everywhere = find_regions(photos, folder / "photos", boxes=table)
    assert [photos.names[r.photo] for r in everywhere].count("val/good/a.png") == 1


def test_stretched_photos_lose_nothing(folder: Path):
    """60 x 40 pixels on 20 x 20: what a crop cuts off is there, a third as wide, half as high."""
    mask = np.zeros((40, 60), bool)
    mask[4:12, :6] = True
    images.save_png(Image.fromarray(mask), folder / "masks/val/bad/a.png")
    table = write(folder, "name,class,x1,y1,x2,y2\na,bad,0,4,6,12\n")
    photos = store(folder, "stretch")
    for given in ({"masks": folder / "masks"}, {"boxes": table}):
        (found,) = find_regions(photos, folder / "photos", **given, fit="stretch")
        assert found.box == (0, 2, 2, 6)
        assert found.original == pytest.approx(math.sqrt(4 * 48 / math.pi))
        assert found.diameter == pytest.approx(math.sqrt(4 * 8 / math.pi))


def test_boxes_by_class_and_path(folder: Path):
    photos = store(folder)
    table = write(folder, "class,name,x1,y1,x2,y2\ngood,a,14,4,22,12\n")
    found = find_regions(photos, folder / "photos", boxes=table)
    assert [photos.names[r.photo] for r in found] == ["val/good/a.png"]
    table = write(folder, "path,x1,y1,x2,y2\nval/bad/b.png,14.5,4,22,12\n")
    found = find_regions(photos, folder / "photos", boxes=table)
    assert [photos.names[r.photo] for r in found] == ["val/bad/b.png"]


def test_sizes_are_of_the_upright_photo(folder: Path):
    exif = Image.Exif()
    exif[images.ORIENTATION_TAG] = 6
    Image.new("RGB", (40, 60), "grey").save(folder / "photos/val/bad/e.jpg", exif=exif)
    table = write(folder, "name,x1,y1,x2,y2\ne,14,4,22,12\n")
    (found,) = find_regions(store(folder), folder / "photos", boxes=table)
    assert found.box == (2, 2, 6, 6) and found.original == pytest.approx(2 * found.diameter)


@pytest.mark.parametrize(
    "text, message",
    [
        ("name,x1,y1,x2\na,1,2,3\n", "lacks the column y2"),
        ("x1,y1,x2,y2\n1,2,3,4\n", "no column 'path' or 'name'"),
        ("name,x1,y1,x2,y2\na,1,2,three,4\n", "no number in the row a,1,2,three,4"),
        ("name,x1,y1,x2,y2\na,1,2,3\n", "no number in the row a,1,2,3,"),
        ("name,x1,y1,x2,y2\na,1,2,3,nan\n", "x1 < x2 and y1 < y2 must hold in the row a,1,2,3,nan"),
        ("name,x1,y1,x2,y2\nz,1,2,3,4\n", "no row fits a photo"),
        ("name,class,x1,y1,x2,y2\na,good,1,2,3,4\n", "no box for any photo of a defect class"),
    ],
)
def test_bad_boxes_get_one_line(folder: Path, text: str, message: str):
    table = write(folder, text)
    with pytest.raises(UserError, match=message) as caught:
        find_regions(store(folder), folder / "photos", boxes=table, classes={"bad"})
    assert "\n" not in str(caught.value)


def test_masks_or_boxes(folder: Path):
    with pytest.raises(UserError, match="give one of the two"):
        find_regions(store(folder), folder / "photos", folder, folder / "boxes.csv")


@pytest.mark.parametrize("shape", [(3, 12), (12, 3), (3, 3), (1, 5), (20, 30)])
def test_a_region_s_error_is_that_of_its_pixels(shape):
    """Also of one three pixels high or wide, which looks like channels."""
    random = np.random.default_rng(0)
    x, y = random.integers(0, 256, (2, 32, 32, 3), dtype=np.uint8)
    mask = np.zeros((32, 32), bool)
    mask[2 : 2 + shape[0], 1 : 1 + shape[1]] = random.random(shape) < 0.6
    mask[2, 1] = mask[1 + shape[0], shape[1]] = True
    error = ((x / 255.0 - y / 255.0) ** 2)[mask].mean()
    found = psnr_inside(x, y, Region(0, mask, 1.0, 1.0))
    assert found == pytest.approx(-10 * np.log10(error), abs=1e-9)
