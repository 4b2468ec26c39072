"""Training a generator: it learns, it goes on after kill -9, and what it writes can be used."""

import json

import pytest
import torch
from contract import small
from killing import assert_kills_change_nothing
from PIL import Image
from test_data import photos as photo_folder

from softvq.errors import UserError
from softvq.pipeline import Pipeline
from softvq.recipe import GeneratorRecipe, load_recipe
from softvq.tokenizer import Tokenizer
from softvq.tokens import read_tokens
from softvq.train.generator import GeneratorTask, train_generator


@pytest.fixture(scope="module")
def tokenizer_folder(tmp_path_factory):
    """An untrained tokenizer whose latents have been measured as of unit variance."""
    folder = tmp_path_factory.mktemp("tokenizer")
    torch.manual_seed(0)
    tokenizer = Tokenizer(small(gain=True)).eval()
    tokenizer.latent_std.fill_(1.0)
    tokenizer.save_pretrained(folder)
    return folder


def recipe(tokenizer, source: str, *overrides: str) -> GeneratorRecipe:
    defaults = ["train.images=3200", "train.evaluate_every=1600", "train.checkpoint_every=1600"]
    settings = [f"tokenizer={tokenizer}", f"data.source={source}", *defaults, *overrides]
    return load_recipe(GeneratorRecipe, "tiny-generator", settings)


def test_training_lowers_the_validation_loss_and_writes_a_pipeline(tmp_path, tokenizer_folder):
    folder = tmp_path / "run"
    source = str(photo_folder(tmp_path / "photos", 60))
    chosen = recipe(tokenizer_folder, source)
    assert train_generator(chosen, folder)

    lines = [json.loads(line) for line in (folder / "metrics.jsonl").read_text().splitlines()]
    losses = [line["validation_loss"] for line in lines if "validation_loss" in line]
    tokenizer = Tokenizer.from_pretrained(tokenizer_folder)
    tokens, held_out = (read_tokens(folder / "tokens" / split) for split in ("train", "val"))
    assert len(tokens) == 2 * 54 and len(held_out) == 6
    task = GeneratorTask(chosen, tokenizer, tokens, held_out)
    start = task.validation_loss(task.model.eval())
    assert start == task.validation_loss(task.model)  # the same times and noise
    assert losses[-1] < 0.7 * start and losses[-1] < losses[0]

    with Image.open(folder / "pictures" / "samples-000000003200.png") as sheet:
        assert sheet.size == (4 * (128 + 2) - 2, 2 * (128 + 2) - 2)  # two classes, four of each
    pipeline = Pipeline.from_pretrained(folder)
    assert pipeline.classes == ["class0", "class1"]
    assert len(pipeline(["class1"], steps=2)) == 1

    with pytest.raises(UserError, match="another recipe"):
        train_generator(recipe(tokenizer_folder, source, "views=1"), folder)


def test_photos_without_classes_train_an_unconditional_generator(tmp_path, tokenizer_folder):
    source = tmp_path / "photos"
    photo_folder(source, 10, classes=1)
    chosen = recipe(tokenizer_folder, str(source / "class0"), "train.images=64")
    assert train_generator(chosen, tmp_path / "run")
    assert len(Pipeline.from_pretrained(tmp_path / "run")(count=2, steps=2)) == 2


def test_a_wrong_recipe_is_said(tmp_path, tokenizer_folder):
    source = str(photo_folder(tmp_path / "photos", 10))
    with pytest.raises(UserError, match="time 'log' is none of uniform, lognormal"):
        train_generator(recipe(tokenizer_folder, source, "time=log"), tmp_path / "a")
    with pytest.raises(UserError, match=r"no config\.json"):
        train_generator(recipe(tmp_path, source), tmp_path / "b")


def test_an_interrupted_run_ends_with_the_same_bytes(tmp_path, tokenizer_folder, monkeypatch):
    source = str(photo_folder(tmp_path / "photos", 10))
    chosen = recipe(tokenizer_folder, source, "train.images=1600", "train.checkpoint_every=320")
    assert train_generator(chosen, tmp_path / "whole")
    loss, steps = GeneratorTask.loss, []

    def interrupted(self, net, batch):
        steps.append(1)
        if len(steps) == 25:  # between the checkpoints at 20 and 30 steps
            raise KeyboardInterrupt
        return loss(self, net, batch)

    monkeypatch.setattr(GeneratorTask, "loss", interrupted)
    with pytest.raises(KeyboardInterrupt):
        train_generator(chosen, tmp_path / "cut")
    assert train_generator(chosen, tmp_path / "cut")
    assert len(steps) == 25 + 30
    for file in ("generator/model.safetensors", "checkpoints/000000001600.safetensors"):
        assert (tmp_path / "whole" / file).read_bytes() == (tmp_path / "cut" / file).read_bytes()


@pytest.mark.slow
def test_kill_minus_9_changes_nothing(tmp_path, tokenizer_folder):
    source = photo_folder(tmp_path / "photos", 40)
    settings = [
        f"tokenizer={tokenizer_folder}", f"data.source={source}", "train.images=9600",
        "train.log_every=32", "train.evaluate_every=9600", "train.checkpoint_every=320",
    ]  # fmt: skip
    code = (
        "import sys; from pathlib import Path\n"
        "from softvq.recipe import GeneratorRecipe, load_recipe\n"
        "from softvq.train.generator import train_generator\n"
        f"recipe = load_recipe(GeneratorRecipe, 'tiny-generator', {settings!r})\n"
        "train_generator(recipe, Path(sys.argv[1]))"
    )
    weights = "generator/model.safetensors"
    assert_kills_change_nothing(code, tmp_path, [900, 3000, 5500], weights)
