"""softvq.data.shards, .sharding and .stream: photos in tar files, read where they lie."""

import functools
import http.server
import io
import json
import tarfile
import threading
import time
from pathlib import Path

import fsspec
import numpy as np
import pytest
import torch
from helpers.pictures import photos as photo_folder
from torch.utils.data import DataLoader

from softvq import cli
from softvq.data import (
    Crops,
    Positions,
    find_marks,
    find_photos,
    open_store,
    stream,
    stream_store,
)
from softvq.data.sharding import addresses_of, write_shards
from softvq.errors import UserError
from softvq.io import load_tensors, save_tensors
from softvq.recipe import TokenizerRecipe, load_recipe
from softvq.train.folder import metrics
from softvq.train.tokenizer import train_tokenizer

SIZE = (32, 32)


@pytest.fixture(scope="module")
def folder(tmp_path_factory) -> Path:
    """40 photos of 2 classes."""
    return photo_folder(tmp_path_factory.mktemp("photos") / "p", 40)


@pytest.fixture
def shards(folder, tmp_path) -> Path:
    write_shards(str(folder), tmp_path / "shards", each=10, progress=False)
    return tmp_path / "shards"


def crops(store, start: int = 0, workers: int = 0) -> list[torch.Tensor]:
    order = Positions(len(store), 8, 96, start, seed=3)
    loader = DataLoader(Crops(store, seed=3), batch_sampler=order, num_workers=workers)
    return [batch[0] for batch in loader]


def lost_in(path: Path) -> set[str]:
    return {json.loads(line)["path"] for line in path.read_text().splitlines()}


@pytest.mark.parametrize("split", ["train", "val", "all"])
def test_shards_hold_what_the_folder_holds(folder, shards, split):
    there, here = find_photos(folder, split), find_photos(shards, split)
    assert (here.names, here.classes) == (there.names, there.classes)
    assert here.labels.tolist() == there.labels.tolist()
    assert all(
        np.array_equal(np.asarray(here.read(i)), np.asarray(there.read(i)))
        for i in range(len(here.names))
    )
    order = here.in_reading_order()
    assert sorted(order.tolist()) == list(range(len(here.names)))
    assert np.array_equal(here.places[order], sorted(here.places.tolist()))
    assert split != "train" or order.tolist() != sorted(order.tolist())  # shuffled


def test_crops_are_those_of_the_decoded_store_from_any_position(folder, shards, tmp_path):
    stored = open_store(folder, "train", SIZE, tmp_path / "cache", 1.25, progress=False)
    streamed = stream_store(shards, "train", SIZE, 1.25)
    wanted = crops(stored)
    for start, workers in ((0, 0), (24, 0), (40, 2)):
        found = crops(streamed, start, workers)
        assert all(map(torch.equal, found, wanted[start // 8 :])) and len(found) == 12 - start // 8


def test_training_on_shards_is_training_on_the_folder(folder, shards, tmp_path):
    for name, source in (("folder", folder), ("shards", shards)):
        recipe = load_recipe(
            TokenizerRecipe, "tiny", [f"data.source={source}", "train.images=128", "train.batch=32",
                                      "train.log_every=32", "train.evaluate_every=128"],
        )  # fmt: skip
        assert train_tokenizer(recipe, tmp_path / f"on-{name}")
    curves = [
        [{k: v for k, v in line.items() if k != "images_per_second"} for line in found]
        for found in (metrics(tmp_path / f"on-{name}", "loss") for name in ("folder", "shards"))
    ]
    assert curves[0] == curves[1]
    assert not list((tmp_path / "on-shards" / "photos").glob("*.npy"))


def test_a_stopped_writing_goes_on_and_another_is_refused(folder, shards):
    before = {path.name: path.read_bytes() for path in shards.iterdir() if path.name[0] != "."}
    (shards / "train-00001.tar").unlink()
    (shards / "train.index.safetensors").unlink()
    write_shards(str(folder), shards, each=10, progress=False)
    assert {p.name: p.read_bytes() for p in shards.iterdir() if p.name[0] != "."} == before
    with pytest.raises(UserError, match="holds other shards"):
        write_shards(str(folder), shards, each=11, progress=False)
    (shards.parent / "mine.txt").write_text("mine")
    with pytest.raises(UserError, match="did not write"):
        write_shards(str(folder), shards.parent, progress=False)


def test_damaged_photos_are_left_out_and_listed(tmp_path):
    source = photo_folder(tmp_path / "p", 12)
    (source / "class0" / "bad.jpg").write_bytes(b"\xff\xd8no photo")
    found, left_out = write_shards(str(source), tmp_path / "s", each=5, progress=False)
    assert len(found.names) == 12 and left_out == 1
    assert lost_in(tmp_path / "s" / "skipped.jsonl") == {"class0/bad.jpg"}
    empty = tmp_path / "none" / "a"
    empty.mkdir(parents=True)
    for name in ("b.jpg", "c.jpg"):
        (empty / name).write_bytes(b"no photo")
    with pytest.raises(UserError, match="no photo there that can be decoded"):
        write_shards(str(empty.parent), tmp_path / "t", progress=False)


@pytest.mark.parametrize("damage", ["missing", "cut"])
def test_training_survives_a_lost_shard_and_says_so(shards, tmp_path, capsys, damage):
    hurt = shards / "train-00001.tar"
    if damage == "missing":
        hurt.unlink()
    else:
        hurt.write_bytes(hurt.read_bytes()[:3000])
    lost = tmp_path / "lost.jsonl"
    store = stream_store(shards, "train", SIZE, 1.25, lost=lost)
    assert sum(map(len, crops(store))) == 96
    listing = store.images.listing
    in_it = {n for n, p in zip(listing.names, listing.places, strict=True)
             if listing.shards[p[0]] == str(hurt)}  # fmt: skip
    assert lost_in(lost) <= in_it and len(lost_in(lost)) >= (10 if damage == "missing" else 8)
    said = capsys.readouterr().err
    assert said.count("train-00001.tar") == 1 and "replaced by another photo" in said
    for path in shards.glob("train-*.tar"):
        path.unlink(missing_ok=True)
    with pytest.raises(UserError, match="in a row cannot be read"):
        crops(store)


def test_training_counts_what_it_lost(shards, tmp_path, capsys):
    (shards / "train-00002.tar").unlink()
    recipe = load_recipe(
        TokenizerRecipe, "tiny", [f"data.source={shards}", "train.images=96", "train.batch=32",
                                  "train.evaluate_every=96"],
    )  # fmt: skip
    assert train_tokenizer(recipe, tmp_path / "run")
    lost = tmp_path / "run" / "photos" / "skipped.jsonl"
    count = len(lost_in(lost))
    assert count == 10  # every photo of it: 96 images are more than two passes of 36
    assert f"{count} photos could not be read, listed in {lost}" in capsys.readouterr().err


def test_a_slow_shard_is_waited_for_and_said(shards, monkeypatch, capsys):
    store = stream_store(shards, "train", SIZE, 1.25)
    wanted = crops(store)
    monkeypatch.setattr(stream, "SLOW", 0.05)
    read = type(store.images.listing).read
    slow = threading.Event()

    def late(self, i):
        if not slow.is_set():
            slow.set()
            time.sleep(0.2)
        return read(self, i)

    monkeypatch.setattr(type(store.images.listing), "read", late)
    assert all(map(torch.equal, crops(store), wanted))
    assert "slow, waiting for it" in capsys.readouterr().err


def test_errors_come_through_threads_and_order_is_kept():
    def odd(i: int) -> int:
        time.sleep(0.001 * (i % 3))
        if i == 50:
            raise ValueError("fifty")
        return i

    assert list(stream.in_threads(odd, range(40))) == list(range(40))
    found = stream.in_threads(odd, range(100))
    assert [next(found) for _ in range(50)] == list(range(50))
    with pytest.raises(ValueError, match="fifty"):
        next(found)


# ---- shards of others, elsewhere ----


def webdataset(path: Path, photos: list[tuple[str, bytes, dict[str, bytes]]]) -> None:
    """A tar file as others write it."""
    with tarfile.open(path, "w") as tar:
        for key, data, more in photos:
            for ending, content in {"jpg": data, **more}.items():
                member = tarfile.TarInfo(f"{key}.{ending}")
                member.size = len(content)
                tar.addfile(member, io.BytesIO(content))


@pytest.mark.parametrize("kind", ["cls", "json", "folder", "none"])
def test_tar_files_of_others(folder, tmp_path, kind):
    files = sorted(folder.rglob("*.png"))[::4]
    (tmp_path / "theirs").mkdir()
    for k in range(2):
        photos = []
        for i, file in enumerate(files[k::2]):
            name = ["dog", "cat"][i % 2]
            beside = {"cls": {"cls": b"%d" % (i % 2)}, "json": {"json": b'{"class": "%s"}' %
                      name.encode()}}.get(kind, {})  # fmt: skip
            key = f"{name}/{i:03d}" if kind == "folder" else f"{i:03d}"
            photos.append((key, file.read_bytes(), beside))
        webdataset(tmp_path / "theirs" / f"a-{k:02d}.tar", photos)
    pattern = str(tmp_path / "theirs" / "a-{00..01}.tar")
    assert addresses_of(pattern) == addresses_of(str(tmp_path / "theirs" / "*.tar"))
    found, left_out = write_shards(pattern, tmp_path / "index", progress=False)
    assert (len(found.names), left_out) == (len(files), 0)
    classes = {"cls": ["0", "1"], "none": []}.get(kind, ["cat", "dog"])
    assert found.classes == classes and not list((tmp_path / "index").glob("*.tar"))
    train, val = (find_photos(tmp_path / "index", split) for split in ("train", "val"))
    assert sorted(train.names + val.names) == found.names and val.names
    pixels = [np.asarray(found.read(i)).sum() for i in range(len(found.names))]
    assert len(set(pixels)) == len(files)


class _Quiet(http.server.SimpleHTTPRequestHandler):
    def log_message(self, *args: object) -> None:
        pass


@pytest.mark.parametrize("scheme", ["http", "memory"])
def test_shards_elsewhere(folder, shards, tmp_path, scheme):
    wanted = crops(stream_store(shards, "train", SIZE, 1.25))
    if scheme == "memory":
        files = fsspec.filesystem("memory")
        for path in shards.glob("*.*"):
            files.pipe(f"/bucket/shards/{path.name}", path.read_bytes())
        found = crops(stream_store("memory://bucket/shards", "train", SIZE, 1.25))
    else:
        pytest.importorskip("aiohttp")
        handler = functools.partial(_Quiet, directory=shards)
        server = http.server.ThreadingHTTPServer(("127.0.0.1", 0), handler)
        threading.Thread(target=server.serve_forever, daemon=True).start()
        address = f"http://127.0.0.1:{server.server_port}"
        found = crops(stream_store(address, "train", SIZE, 1.25))
        server.shutdown()
    assert all(map(torch.equal, found, wanted))


def test_a_data_set_of_hugging_face(folder, tmp_path):
    datasets = pytest.importorskip("datasets")
    paths = sorted(map(str, folder.rglob("*.png")))
    columns = {"picture": paths, "kind": [int("class1" in path) for path in paths]}
    features = datasets.Features(
        picture=datasets.Image(), kind=datasets.ClassLabel(names=["class0", "class1"])
    )
    held = datasets.Dataset.from_dict(columns, features=features)
    held.save_to_disk(tmp_path / "saved")
    found, left_out = write_shards(
        f"hf:{tmp_path / 'saved'}", tmp_path / "s", each=16, progress=False
    )
    assert (len(found.names), left_out, found.classes) == (40, 0, ["class0", "class1"])
    assert len(find_photos(tmp_path / "s", "val").names) == 4

    def kinds(listing) -> list[tuple[int, int]]:
        return sorted(
            (int(np.asarray(listing.read(i)).sum()), int(listing.labels[i]))
            for i in range(len(listing.names))
        )

    assert kinds(found) == kinds(find_photos(folder, "all"))
    held.remove_columns("picture").save_to_disk(tmp_path / "numbers")
    for wrong, says in (
        (f"hf:{tmp_path / 'numbers'}", "has no column of images, but kind"),
        (f"hf:{tmp_path / 'nothing'}", "cannot be opened"),
        ("none-*.tar", "no such files"),
    ):
        with pytest.raises(UserError, match=says):
            write_shards(wrong, tmp_path / "w", progress=False)
    assert not (tmp_path / "w").exists()


@pytest.mark.parametrize("change", ["cut", "text", "places", "labels"])
def test_a_damaged_index_is_one_line(shards, change):
    path = shards / "train.index.safetensors"
    data = path.read_bytes()
    if change == "cut":
        path.write_bytes(data[:-20])
    elif change == "text":
        path.write_bytes(b"no index")
    else:
        tensors = load_tensors(path)
        tensors[change] = tensors[change] + 99
        facts = json.loads(data[8 : 8 + int.from_bytes(data[:8], "little")])["__metadata__"]
        save_tensors(tensors, path, facts)
    with pytest.raises(UserError, match=str(path)):
        find_photos(shards)


def test_what_needs_a_folder_says_so(shards, tmp_path, capsys):
    asked = ["study", "--data", str(shards), "--out", str(tmp_path / "study"), "--budget", "1m"]
    assert cli.main(asked) == 2
    assert "a study looks at photos in a folder" in capsys.readouterr().err
    (tmp_path / "boxes.csv").write_text("path,x1,y1,x2,y2\n")
    with pytest.raises(UserError, match="boxes are of photos in a folder"):
        find_marks([], shards, boxes=tmp_path / "boxes.csv")


def test_the_command(folder, tmp_path, capsys):
    asked = ["shard", "--data", str(folder), "--out", str(tmp_path / "s"), "--each", "16"]
    assert cli.main([*asked, "--dry-run"]) == 0
    assert "40 photos: 36 for training" in capsys.readouterr().out
    assert not (tmp_path / "s").exists()
    assert cli.main(asked) == 0
    assert "40 photos in 4 shards" in capsys.readouterr().out
    assert cli.main([*asked, "--json"]) == 0
    assert json.loads(capsys.readouterr().out)["shards"] == 4
    for data, says in ((tmp_path / "none", "no such folder"), ("x://y/z.tar", "no such files"),
                       (tmp_path / "s" / "*.tar", "holds other shards")):  # fmt: skip
        assert cli.main(["shard", "--data", str(data), "--out", str(tmp_path / "s")]) == 2
        error = capsys.readouterr().err
        assert says in error and error.count("\n") == 1
