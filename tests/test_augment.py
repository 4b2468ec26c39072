"""Pictures drawn to train on: how many, of what, no near-copies, and never taken for photos."""

import csv

import numpy as np
import pytest
import torch
from helpers.pictures import photos as photo_folder
from PIL import Image

from softvq.augment import augment
from softvq.cli import main
from softvq.data import find_photos, temporary_store
from softvq.errors import UserError
from softvq.generator.config import SiTConfig
from softvq.generator.transformer import SiT
from softvq.pipeline import Pipeline
from softvq.recipe import TokenizerRecipe, load_recipe
from softvq.tokenizer import Tokenizer


@pytest.fixture(scope="module")
def source(tmp_path_factory):
    """Noise in two classes, so that every photo has detail of its own."""
    root = tmp_path_factory.mktemp("photos")
    draws = np.random.default_rng(0)
    for split, count in (("train", 6), ("val", 2)):
        for name in ("bad", "ok"):
            (root / split / name).mkdir(parents=True)
            for i in range(count):
                pixels = draws.integers(0, 256, (32, 32, 3), dtype=np.uint8)
                Image.fromarray(pixels).save(root / split / name / f"{i}.png")
    return root


@pytest.fixture
def pipeline() -> Pipeline:
    torch.manual_seed(0)
    tokenizer = Tokenizer(load_recipe(TokenizerRecipe, "tiny", []).model).eval()
    config = SiTConfig(tokens=8, channels=16, num_classes=2, width=32, depth=1, heads=2)
    return Pipeline(tokenizer, SiT(config).eval(), ["bad", "ok"])


def test_as_many_of_each_class_as_asked_and_the_same_again(tmp_path, source, pipeline):
    found = augment(pipeline, source, tmp_path / "a", 3, batch=2, progress=False, steps=2)
    assert [one.path for one in found.pictures] == [
        f"train/{name}/drawn-{i:05d}.png" for name in ("bad", "ok") for i in range(3)
    ]
    assert len({(one.seed, one.number) for one in found.pictures}) == 6
    again = augment(pipeline, source, tmp_path / "b", 3, batch=3, progress=False, steps=2)
    for one in found.pictures:
        assert (tmp_path / "a" / one.path).read_bytes() == (tmp_path / "b" / one.path).read_bytes()
    assert again == found
    with open(tmp_path / "a/drawn.csv", newline="") as file:
        rows = list(csv.DictReader(file))
    assert [row["path"] for row in rows] == [one.path for one in found.pictures]
    assert {row["class"] for row in rows} == {"bad", "ok"}


def test_near_copies_make_room_for_others(tmp_path, source, pipeline, monkeypatch):
    with temporary_store(source, "train", (32, 32), tmp_path) as photos:
        photo = np.array(photos.images[0])  # of class bad
    decode = pipeline.decode_uint8

    def sometimes_a_photo(latents, batch=64):
        pictures = decode(latents, batch)
        pictures[0] = photo // 8 * 8  # as a coarse re-encoding leaves it
        return pictures

    monkeypatch.setattr(pipeline, "decode_uint8", sometimes_a_photo)
    found = augment(
        pipeline, source, tmp_path / "out", 3, ["bad"], batch=2, progress=False, steps=1
    )
    assert found.copies == 3 and len(found.pictures) == 3
    assert max(one.similarity for one in found.pictures) < 0.9
    monkeypatch.setattr(
        pipeline, "decode_uint8", lambda latents, batch=64: np.stack([photo] * len(latents))
    )
    none = augment(pipeline, source, tmp_path / "none", 2, ["bad"], progress=False, steps=1)
    assert not none.pictures and none.copies and not list((tmp_path / "none").rglob("*.png"))


def test_drawn_pictures_are_never_taken_for_photos(tmp_path, source, pipeline):
    augment(pipeline, source, tmp_path / "out", 1, progress=False, steps=1)
    with pytest.raises(UserError, match="train"):
        find_photos(tmp_path / "out")
    with pytest.raises(UserError, match="lies in the photos' folder"):
        augment(pipeline, source, source / "out", 1, progress=False)
    with pytest.raises(UserError, match="unknown label 'cat'"):
        augment(pipeline, source, tmp_path / "cat", 1, ["cat"], progress=False)


def test_the_command_says_what_it_drew(tmp_path, source, pipeline, capsys):
    pipeline.save_pretrained(tmp_path / "model")
    command = ["augment", "--model", str(tmp_path / "model"), "--data", str(source), "--out"]
    command += [str(tmp_path / "out"), "--per-class", "2", "--steps", "1", "--labels", "ok"]
    assert main(command) == 0
    said = capsys.readouterr().out
    assert said.startswith("2 pictures in ") and "0 near-copies left out" in said
    other = str(photo_folder(tmp_path / "other", 4))
    command[4], command[6] = other, str(tmp_path / "out2")
    assert main(command) == 2 and "no photos of class ok" in capsys.readouterr().err
