"""The detector: what it pools, what it learns to find, and what it was taught on."""

import numpy as np
import pytest
import torch
from helpers.pictures import SIDE, tiles

from softvq import images
from softvq.data import open_store
from softvq.evaluate import detector
from softvq.evaluate.detector import (
    CELL,
    SHARPNESS,
    Detector,
    DetectorConfig,
    views,
)
from softvq.study.regions import find_regions


@pytest.fixture(scope="module")
def taught(studied, tmp_path_factory):
    """The study's detector of holes, and the held-out tiles with their masks."""
    photos = studied / "photos"
    val = open_store(photos, "val", (SIDE, SIDE), tmp_path_factory.mktemp("cache"), 1.0)
    inside = np.zeros((len(val), SIDE, SIDE), bool)
    for region in find_regions(val, photos, studied / "masks"):
        inside[region.photo] |= region.mask
    return Detector.from_pretrained(studied / "out" / "detector"), val, inside


def test_holes_are_found_on_photos_not_seen(taught):
    net, val, _ = taught
    with torch.no_grad():
        predicted = net(images.to_tensor(np.asarray(val.images))).argmax(1).numpy()
    assert (predicted == val.labels).mean() > 0.85


def test_a_hole_is_found_where_it_is(taught):
    net, val, masks = taught
    hole = val.classes.index("hole")
    some = val.labels == hole
    with torch.no_grad():
        cells = net.cells(net.maps(images.to_tensor(np.asarray(val.images[some]))))
    score = (cells[..., hole] - cells[..., 1 - hole]).flatten(1).argmax(1).numpy()
    side = SIDE // CELL
    cut = masks[some].reshape(-1, side, CELL, side, CELL).any((2, 4)).reshape(-1, side * side)
    assert cut[np.arange(len(cut)), score].mean() > 0.85


def test_it_is_the_same_after_saving(taught, tmp_path):
    net, val, _ = taught
    net.save_pretrained(tmp_path)
    pixels = images.to_tensor(np.asarray(val.images[:3]))
    with torch.no_grad():
        assert torch.equal(Detector.from_pretrained(tmp_path)(pixels), net(pixels))


def test_one_bad_cell_spoils_a_photo():
    net = Detector(DetectorConfig(16, 16, 3, normal=(1,)))
    cells = torch.randn(2, 2, 2, 3, generator=torch.Generator().manual_seed(0))
    beside = (cells - cells[..., 1:2]).reshape(2, 4, 3)
    wanted = (SHARPNESS * beside).exp().mean(1).log() / SHARPNESS
    torch.testing.assert_close(net.pool(cells), wanted)
    assert (net.pool(cells)[:, 1] == 0).all()
    spoilt = cells.clone()
    spoilt[0, 1, 1, 2] += 50
    assert net.pool(spoilt)[0].argmax() == 2


def test_without_normal_classes_all_cells_vote():
    net = Detector(DetectorConfig(16, 16, 3))
    cells = torch.randn(2, 2, 2, 3)
    torch.testing.assert_close(net.pool(cells), cells.mean((1, 2)))


def test_views_of_a_few_and_of_many_photos(tmp_path, monkeypatch):
    photos, _ = tiles(tmp_path, 4, 2)
    store = open_store(photos, "train", (SIDE, SIDE), tmp_path / "cache", 1.0)
    masks = np.zeros((8, SIDE, SIDE), bool)
    masks[0, 0, 0] = True
    seen = list(views(store, masks))
    assert sum(len(labels) for _, _, labels in seen) == 5 * 8
    assert np.array_equal(seen[1][0], seen[0][0][:, :, ::-1])
    assert seen[1][1][0, 0, -1] and not seen[1][1][0, 0, 0]  # the mask is mirrored with it
    monkeypatch.setattr(detector, "VIEWS", 4)
    seen = list(views(store, masks))
    assert sum(len(labels) for _, _, labels in seen) == 4
    assert [store.classes[i] for i in seen[0][2]] == ["good", "good", "hole", "hole"]
