"""softvq.data: listing, splits, the store of decoded photos, and the resumable order."""

import io
import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import pytest
import torch
from helpers.pictures import photos
from PIL import Image
from test_images import damaged_files, picture
from torch.utils.data import DataLoader

from softvq import data, images
from softvq.data import store as store_module
from softvq.errors import UserError
from softvq.recipe import DataConfig
from softvq.train.folder import open_run
from softvq.train.photos import open_photos

SIZE = (16, 24)


def touch(root: Path, *names: str) -> Path:
    for name in names:
        (root / name).parent.mkdir(parents=True, exist_ok=True)
        (root / name).touch()
    return root


# Listing


def test_folder_is_listed_sorted_with_classes(tmp_path):
    touch(tmp_path, "b/2.JPG", "b/deep/er/1.webp", "a/x.jpeg", "a/y.TIFF", "a/notes.txt", "c/n.txt")
    touch(tmp_path, ".hidden/z.png", "a/.z.png", "a/.thumbs/z.png", "labels.csv")
    listing = data.find_photos(str(tmp_path), "all")
    assert listing.names == ["a/x.jpeg", "a/y.TIFF", "b/2.JPG", "b/deep/er/1.webp"]
    assert listing.classes == ["a", "b"] and listing.labels.tolist() == [0, 0, 1, 1]
    assert listing.labels.dtype == np.int64
    assert listing.paths == [tmp_path / name for name in listing.names]


def test_flat_folder_is_unconditional(tmp_path):
    listing = data.find_photos(touch(tmp_path, "1.png", "2.gif", "3.bmp"), "all")
    assert listing.classes == [] and listing.labels.tolist() == [0, 0, 0]


def test_split_is_stratified_disjoint_and_deterministic(tmp_path):
    for name, count in {"a": 100, "b": 2, "c": 1, "d": 37}.items():
        touch(tmp_path, *[f"{name}/{i}.png" for i in range(count)])
    train, val = data.find_photos(tmp_path, "train"), data.find_photos(tmp_path, "val")
    assert sorted(train.names + val.names) == data.find_photos(tmp_path, "all").names
    assert np.bincount(val.labels, minlength=4).tolist() == [10, 1, 0, 4]
    assert train.classes == val.classes == ["a", "b", "c", "d"]
    assert train.names == sorted(train.names) and val.names == sorted(val.names)
    assert data.find_photos(tmp_path, "val").names == val.names
    for name in val.names:  # a photo more or less elsewhere moves nothing
        assert name in data.find_photos(touch(tmp_path, "e/new.png"), "val").names


def test_train_and_val_folders_are_honoured(tmp_path):
    touch(tmp_path, "train/a/1.png", "train/b/2.png", "val/b/3.png", "test/z/9.png")
    train, val = data.find_photos(tmp_path, "train"), data.find_photos(tmp_path, "val")
    assert train.names == ["train/a/1.png", "train/b/2.png"] and val.names == ["val/b/3.png"]
    assert train.classes == val.classes == ["a", "b"] and val.labels.tolist() == [1]
    assert data.find_photos(tmp_path, "all").labels.tolist() == [0, 1, 1]


@pytest.mark.parametrize(
    ("names", "message"),
    [
        (["train/a/1.png", "val/c/2.png"], "class c, unknown in train/"),
        (["train/a/1.png", "val/2.png"], "photos outside class folders"),
        (["train/1.png", "val/a/2.png"], "class a, unknown"),
        (["train/a/1.png"], "has train/ but no val/"),
        (["a/1.png", "2.png"], r"1 photos \(2.png, ...\) lie beside"),
        (["a/1.txt"], "no photos there"),
        (["train/a/1.png", "val/a/1.txt"], "val: no photos there"),
        (["1.png"], "no photo left for validation"),
    ],
)
def test_listing_errors_name_cause_and_mend(tmp_path, names, message):
    with pytest.raises(UserError, match=message) as caught:
        data.find_photos(touch(tmp_path, *names), "val")
    assert "\n" not in str(caught.value) and str(tmp_path) in str(caught.value)


def test_wrong_sources(tmp_path):
    touch(tmp_path, "1.png")
    with pytest.raises(UserError, match="no such folder"):
        data.find_photos(tmp_path / "none")
    with pytest.raises(UserError, match="is a file"):
        data.find_photos(tmp_path / "1.png")
    with pytest.raises(ValueError, match="unknown split"):
        data.find_photos(tmp_path, "test")


def test_links_are_followed_and_loops_are_not(tmp_path):
    touch(tmp_path, "real/1.png", "data/a/2.png")
    (tmp_path / "data/b").symlink_to(tmp_path / "real")
    (tmp_path / "data/a/loop").symlink_to(tmp_path / "data")
    assert data.find_photos(tmp_path / "data", "all").names == ["a/2.png", "b/1.png"]


@pytest.mark.parametrize(
    ("train", "held_out"),
    [
        ("train", "test"),
        ("Train", "Val"),
        ("TRAIN", "valid"),
        ("training", "validation"),
        ("train2017", "val2017"),
        ("images/train", "images/val"),
    ],
)
def test_splits_are_splits_whatever_they_are_called(tmp_path, train, held_out):
    touch(tmp_path, f"{train}/a/1.png", f"{train}/b/2.png", f"{held_out}/a/3.png")
    listings = [data.find_photos(tmp_path, split) for split in ("train", "val")]
    assert [listing.classes for listing in listings] == [["a", "b"]] * 2
    assert [path for listing in listings for path in listing.paths] == [
        tmp_path / name for name in (f"{train}/a/1.png", f"{train}/b/2.png", f"{held_out}/a/3.png")
    ]
    assert {data.split_of(name) for name in listings[0].names} == {"train"}
    said = f"3 photos: 2 for training, 1 held out ({held_out.split('/')[-1]}/)"
    assert listings[0].summary() == f"{said}; 2 classes: a 2, b 1" == listings[1].summary()


def test_of_three_splits_val_is_held_out_and_test_is_left_out(tmp_path):
    touch(
        tmp_path, "train/1.png", "valid/2.png", "test/3.png", "train/4.heic", "train/5", "x/6.png"
    )
    listing = data.find_photos(tmp_path, "all")
    assert listing.names == ["train/1.png", "valid/2.png"]
    assert listing.summary() == (
        "2 photos: 1 for training, 1 held out (valid/); no classes\n"
        "left out: test/; x/; files that are no photos (.heic 1, without ending 1)"
    )


@pytest.mark.parametrize(
    ("names", "message"),
    [
        (["test/a/1.png", "val/a/2.png"], "has test/ but no train/"),
        (["Train/a/1.png"], "has Train/ but no val/"),
        (["train/1.png", "val/2.png", "valid/3.png"], "has both val/ and valid/"),
        (["train/a/1.png", "test/a/1.png", "test/b/1.png"], "test: class b, unknown in train/"),
        (["a/1.heic"], r"no photos there .*, but .heic 1"),
    ],
)
def test_splits_that_cannot_be_get_one_line(tmp_path, names, message):
    with pytest.raises(UserError, match=message) as caught:
        data.find_photos(touch(tmp_path, *names), "val")
    assert "\n" not in str(caught.value)


def test_yolo_folders_are_no_classes(tmp_path):
    touch(tmp_path, "train/images/1.jfif", "train/labels/1.txt", "valid/images/2.png")
    listing = data.find_photos(tmp_path, "all")
    assert listing.names == ["train/images/1.jfif", "valid/images/2.png"] and not listing.classes


def test_linked_photos_count_once_and_end(tmp_path):
    """Three folders, each with links to the other two, to the whole and to itself."""
    root = touch(tmp_path / "d", *[f"{a}/{i}.png" for a in "xyz" for i in range(2)])
    for a in "xyz":
        for b in "xyz":
            (root / a / f"to-{b}").symlink_to(root / b)
        (root / a / "all").symlink_to(root)
        (root / a / "first.png").symlink_to(root / "x" / "0.png")
    (root / "a-link-that-is-listed-first").symlink_to(root / "x")
    touch(tmp_path / "beside", "e/9.png")
    (root / "w").symlink_to(tmp_path / "beside" / "e")
    (root / "w2").symlink_to(tmp_path / "beside" / "e")
    (root / "up").symlink_to(tmp_path)
    listing = data.find_photos(root, "all")
    assert listing.names == ["w/9.png", *[f"{a}/{i}.png" for a in "xyz" for i in range(2)]]
    assert "links to photos that are listed already (3)" in listing.summary()


def test_a_photo_is_not_on_both_sides_by_a_link(tmp_path):
    touch(tmp_path, "train/a/1.png", "val/a/2.png")
    (tmp_path / "train/a/more").symlink_to(tmp_path / "val")
    assert data.find_photos(tmp_path, "train").names == ["train/a/1.png"]
    assert data.find_photos(tmp_path, "val").names == ["val/a/2.png"]


@pytest.mark.parametrize(
    "mark", ["recipe.yaml", "softvq.json", "model_index.json", "skipped.jsonl"]
)
def test_what_softvq_wrote_below_the_photos_is_not_read(tmp_path, mark):
    touch(tmp_path, "a/1.png", "b/2.png", "runs/t/pictures/3.png", f"runs/t/{mark}")
    listing = data.find_photos(touch(tmp_path, mark), "all")  # beside the photos it hides nothing
    assert listing.names == ["a/1.png", "b/2.png"] and listing.classes == ["a", "b"]
    assert "left out: runs/t/ (written by softvq)" in listing.summary()


# Built-in photos


def test_builtin_crops_of_the_two_splits_share_no_pixel():
    covered = {}
    for split in ("train", "val"):
        listing = data.find_photos("builtin", split)
        assert len(listing.classes) == len(data.BUILTIN)
        assert len(set(listing.names)) == len(listing.names)
        masks = {path: np.zeros(images.load(path).size[::-1], bool) for path in set(listing.paths)}
        for path, (left, top, right, bottom) in zip(listing.paths, listing.boxes, strict=True):
            height, width = masks[path].shape
            assert 0 <= left and 0 <= top and right <= width and bottom <= height
            assert right - left == bottom - top >= data.BUILTIN_MIN_SIDE
            masks[path][top:bottom, left:right] = True
        covered[split] = masks
    for path, mask in covered["train"].items():
        assert not (mask & covered["val"][path]).any()
        assert mask.any() and covered["val"][path].any()


def test_builtin_is_deterministic_balanced_and_colour():
    train, again = data.find_photos("builtin", "train"), data.find_photos("builtin", "train")
    assert train.boxes == again.boxes and train.names == again.names
    assert np.bincount(train.labels).tolist() == [150] * 14
    crop = train.read(0)
    assert crop.mode == "RGB" and crop.width == crop.height
    assert len(data.find_photos("builtin", "all").names) == 14 * 165


# Store


def test_200_photos_with_20_damaged_of_ten_kinds(tmp_path):
    root = tmp_path / "photos"
    photos(root, 180)
    wrong = damaged_files()
    assert len(wrong) == 10
    for copy in range(2):
        for name, (content, _) in wrong.items():
            (root / f"class{copy}" / name).write_bytes(content)
    store = data.open_store(root, "all", SIZE, tmp_path / "cache", progress=False)
    assert len(store) == 180 and store.images.shape == (180, 20, 30, 3)
    assert np.bincount(store.labels).tolist() == [90, 90]
    lines = (tmp_path / "cache" / "skipped.jsonl").read_text().splitlines()
    skipped = {item["path"]: item["reason"] for item in map(json.loads, lines)}
    assert len(lines) == len(skipped) == len(store.skipped) == 20
    for path, reason in skipped.items():
        assert wrong[Path(path).name][1] in reason
    for i in (0, 89, 90, 179):  # every photo kept its place, its name and its label
        expected = images.fit(images.load(root / store.names[i]), (20, 30))
        np.testing.assert_array_equal(store.images[i], expected)
        assert store.names[i].startswith(f"class{store.labels[i]}/")

    # Both splits of the same folder are covered by one list.
    for split in ("train", "val"):
        data.open_store(root, split, SIZE, tmp_path / "both", progress=False)
    assert (tmp_path / "both" / "skipped.jsonl").read_text().splitlines() == lines


def test_store_is_reused_until_something_changes(tmp_path, monkeypatch):
    root, cache = photos(tmp_path / "photos", 10), tmp_path / "cache"
    decoded = []
    load = images.load
    monkeypatch.setattr(images, "load", lambda path: decoded.append(path) or load(path))

    def opened(**options):
        decoded.clear()
        store = data.open_store(root, "all", SIZE, cache, progress=False, **options)
        return store, len(decoded)

    first, count = opened()
    assert count == 10
    second, count = opened()
    assert count == 0 and second.names == first.names and second.labels.dtype == np.int64
    np.testing.assert_array_equal(first.images, second.images)
    assert opened(margin=1.0)[1] == 10 and opened(fit="stretch")[1] == 10
    assert opened()[1] == 0  # the others lie beside it

    picture().save(root / "class0" / "000.png")
    third, count = opened()
    assert count == 10 and (third.images[0] != first.images[0]).any()
    (root / "class0" / "000.png").unlink()
    assert opened()[1] == 9

    for path in cache.glob("all-*.npy"):
        path.write_bytes(path.read_bytes()[:-100])
    assert opened()[1] == 9
    for path in cache.glob("all-*.json"):
        path.write_text(path.read_text()[:-10])
    assert opened()[1] == 9


@pytest.mark.parametrize("count", [0, 9, 10, 99999, 10**12])
def test_npy_header_has_one_length_and_numpy_reads_it(count):
    file, shorter = io.BytesIO(), io.BytesIO()
    store_module._write_header(file, count, (7, 1234))
    store_module._write_header(shorter, 1, (7, 1234))
    assert len(file.getvalue()) == len(shorter.getvalue()) and len(file.getvalue()) % 64 == 0
    file.seek(0)
    assert np.lib.format.read_magic(file) == (1, 0)
    shape, order, dtype = np.lib.format.read_array_header_1_0(file)
    assert shape == (count, 7, 1234, 3) and not order and dtype == np.uint8


def test_store_errors(tmp_path, monkeypatch):
    root = touch(tmp_path / "bad", "1.png", "2.png")
    with pytest.raises(UserError, match=r"none of the 2 photos can be decoded .*empty file"):
        data.open_store(root, "all", SIZE, tmp_path / "cache", progress=False)
    assert not list((tmp_path / "cache").glob("*.npy*"))
    with pytest.raises(ValueError, match="margin"):
        data.open_store(root, "all", SIZE, tmp_path / "cache", margin=0.5)

    good = photos(tmp_path / "good", 4)
    with pytest.raises(UserError, match="cannot write"):
        data.open_store(good, "all", SIZE, root / "1.png" / "cache", progress=False)
    monkeypatch.setattr(
        store_module.shutil, "disk_usage", lambda path: type("Usage", (), {"free": 5})
    )
    with pytest.raises(UserError, match=r"the disk is full; it takes .* MB.*make room"):
        data.open_store(good, "all", SIZE, tmp_path / "cache", progress=False)


@pytest.mark.skipif(not os.path.exists("/dev/full"), reason="needs /dev/full")
def test_disk_that_fills_while_decoding(tmp_path, monkeypatch):
    root = photos(tmp_path / "photos", 4)
    real = open

    def full(path, mode="r", *rest, **options):
        return real("/dev/full" if str(path).endswith(".partial") else path, mode, *rest, **options)

    monkeypatch.setattr(store_module, "open", full, raising=False)
    with pytest.raises(UserError, match="the disk is full"):
        data.open_store(root, "all", (200, 200), tmp_path / "cache", progress=False)


def test_ctrl_c_while_decoding_leaves_nothing_behind(tmp_path, monkeypatch):
    def interrupted(path):
        raise KeyboardInterrupt

    monkeypatch.setattr(images, "load", interrupted)
    with pytest.raises(KeyboardInterrupt):
        data.open_store(photos(tmp_path / "p", 4), "all", SIZE, tmp_path / "c", progress=False)
    assert list((tmp_path / "c").iterdir()) == []


def test_killed_while_decoding_then_started_again(tmp_path):
    root = photos(tmp_path / "photos", 12)
    slow = (
        "import sys, time; from softvq import data, images; load = images.load\n"
        "images.load = lambda path: (time.sleep(0.5), load(path))[1]\n"
        "data.open_store(sys.argv[1], 'all', (16, 24), sys.argv[2], progress=False)"
    )
    command = [sys.executable, "-c", slow, str(root), str(tmp_path / "cache")]
    process = subprocess.Popen(command, cwd=Path(__file__).parent.parent)
    deadline = time.monotonic() + 120
    while not list((tmp_path / "cache").glob("*.partial")) and time.monotonic() < deadline:
        time.sleep(0.02)
    process.send_signal(signal.SIGKILL)
    process.wait()
    assert [p.name for p in (tmp_path / "cache").glob("*.partial")]
    store = data.open_store(root, "all", SIZE, tmp_path / "cache", progress=False)
    assert len(store) == 12
    assert not list((tmp_path / "cache").glob("*.partial"))


def test_temporary_stores_go_and_those_of_killed_processes_are_swept(tmp_path):
    root = photos(tmp_path / "photos", 4)
    left, foreign, new = (tmp_path / "out" / f".photos-{x}" for x in ("left", "old", "new"))
    touch(left, "val-16x24-0.npy", ".alive")  # nobody holds the lock: its process is gone
    touch(foreign, "val-16x24-0.npy")  # of a version without locks, and old
    os.utime(foreign, (0, 0))
    new.mkdir()  # another process is just making it
    options = {"beside": tmp_path / "out", "progress": False}
    with data.temporary_store(root, "all", SIZE, **options) as first:
        with data.temporary_store(root, "all", SIZE, **options) as second:
            assert len(list((tmp_path / "out").iterdir())) == 3  # the two, and what is new
            np.testing.assert_array_equal(first.images, second.images)
        assert len(first) == 4 and first.summary.startswith("4 photos: 2 for training, 2 held out")
        assert first.root == root
    assert list((tmp_path / "out").iterdir()) == [new]


# Batches


@pytest.fixture(scope="module")
def store(tmp_path_factory) -> data.Store:
    base = tmp_path_factory.mktemp("store")
    return data.open_store(photos(base / "p", 23), "all", SIZE, base / "cache", progress=False)


def pairs(**options) -> list[tuple[int, int]]:
    return [item for batch in data.Positions(**options) for item in batch]


def test_every_pass_sees_every_photo_once_in_another_order():
    order = pairs(count=23, batch=8, stop=69)
    assert [position for _, position in order] == list(range(69))
    passes = [[i for i, _ in order[n : n + 23]] for n in (0, 23, 46)]
    assert all(sorted(one) == list(range(23)) for one in passes)
    assert passes[0] != passes[1] != passes[2] != passes[0]
    assert passes[0] != [i for i, _ in pairs(count=23, batch=8, stop=23, seed=1)]


@pytest.mark.parametrize("batch", [1, 4, 7, 64])
def test_order_depends_neither_on_batch_size_nor_on_where_it_starts(batch):
    whole = pairs(count=23, batch=5, stop=100)
    assert pairs(count=23, batch=batch, stop=100) == whole
    assert pairs(count=23, batch=batch, start=37, stop=100) == whole[37:]
    sampler = data.Positions(count=23, batch=batch, start=37, stop=100)
    assert len(list(sampler)) == len(sampler)
    assert list(data.Positions(count=23, batch=batch, start=100, stop=100)) == []


@pytest.mark.parametrize("world", [2, 4])
def test_ranks_share_every_global_batch(world):
    options = {"count": 23, "batch": 8, "stop": 60}
    shares = [list(data.Positions(**options, rank=r, world=world)) for r in range(world)]
    for i, batch in enumerate(data.Positions(**options)):
        assert [share[i] for share in shares] == [
            batch[r * len(batch) // world : (r + 1) * len(batch) // world] for r in range(world)
        ]
    with pytest.raises(ValueError):
        data.Positions(count=23, batch=9, stop=60, world=2)
    with pytest.raises(ValueError):
        data.Positions(count=23, batch=8, stop=61, world=2)


def test_crops_are_bit_identical_from_their_position(store):
    def run(start: int, batch: int, workers: int = 0) -> torch.Tensor:
        sampler = data.Positions(len(store), batch, start=start, stop=60)
        loader = DataLoader(data.Crops(store, seed=3), batch_sampler=sampler, num_workers=workers)
        return torch.cat([pictures for pictures, *_ in loader])

    whole = run(0, 8)
    assert whole.shape == (60, 3, *SIZE) and whole.dtype == torch.float32
    assert whole.abs().max() <= 1
    assert run(0, 13).equal(whole) and run(31, 8).equal(whole[31:])
    assert run(0, 8, workers=2).equal(whole)


def test_labels_come_with_their_photos(store):
    crops = data.Crops(store)
    for index, position in pairs(count=len(store), batch=8, stop=23):
        label = crops[index, position][1]
        assert type(label) is int and store.names[index].startswith(f"class{label}/")


def test_crops_against_brute_force(store):
    """Every crop is the box and the mirror image that its seed and position say."""
    height, width = store.images.shape[1:3]
    sides, mirrored = [], 0
    for position in range(200):
        side, x, y, coin = np.random.default_rng((0, position)).random(4)
        side = 0.8 + 0.2 * side
        left, top = x * (1 - side) * width, y * (1 - side) * height
        box = (left, top, min(left + side * width, width), min(top + side * height, height))
        crop = Image.fromarray(store.images[5]).resize(SIZE[::-1], images.RESAMPLE, box)
        if coin < 0.5:
            crop = crop.transpose(Image.Transpose.FLIP_LEFT_RIGHT)
        made = data.Crops(store)[5, position]
        assert made.pixels.equal(images.to_tensor(np.asarray(crop)))
        assert (made.row, made.mirrored) == (5, coin < 0.5)
        sides.append(side)
        mirrored += coin < 0.5
    assert min(sides) < 0.81 and max(sides) > 0.99 and 75 < mirrored < 125


def test_without_augmentation_the_whole_picture_comes_back(tmp_path):
    root = photos(tmp_path / "p", 7)
    exact = data.open_store(root, "all", SIZE, tmp_path / "cache", margin=1.0, progress=False)
    for i in range(7):
        item = data.Crops(exact, augment=False)[i, 12345][0]
        assert item.equal(images.to_tensor(exact.images[i]))
    # With nothing to crop and no mirror, augmentation leaves the picture as it is.
    assert data.Crops(exact, flip=False)[3, 1][0].equal(images.to_tensor(exact.images[3]))


@pytest.mark.parametrize("batch", [1, 5, 100])
def test_fixed_batches(store, batch):
    batches = list(data.fixed_batches(store, batch))
    assert [len(labels) for _, labels in batches[:-1]] == [batch] * (len(batches) - 1)
    pictures = torch.cat([pictures for pictures, _ in batches])
    labels = torch.cat([labels for _, labels in batches])
    assert pictures.shape == (23, 3, *SIZE) and labels.tolist() == store.labels.tolist()
    whole = Image.fromarray(store.images[22]).resize(SIZE[::-1], images.RESAMPLE)
    assert pictures[22].equal(images.to_tensor(np.asarray(whole)))


def test_training_says_what_it_found_and_writes_elsewhere(tmp_path, capsys):
    root = photos(tmp_path / "photos", 6)
    (root / "class0" / "1.heic").touch()
    config = DataConfig(source=str(root))
    train, val = open_photos(config, SIZE, tmp_path / "run" / "photos")
    assert (len(train), len(val)) == (4, 2)
    assert f"{train.summary}\n" in capsys.readouterr().err
    assert train.summary.split("\n") == [
        "6 photos: 4 for training, 2 held out (drawn by name); 2 classes: class0 3, class1 3",
        "left out: files that are no photos (.heic 1)",
    ]
    open_photos(config, SIZE, tmp_path / "run" / "photos", say=False)  # as an arm of a study
    assert capsys.readouterr().err == ""
    for out in (root, root / "run", tmp_path):
        with pytest.raises(UserError, match="folder"), open_run(out, "", config.source):
            pass
    assert not (root / "run").exists()
