"""The two promises to a user with a long run and a messy folder."""

import json
import os
import signal

import pytest
import torch
from helpers.pictures import photos
from killing import assert_kills_change_nothing
from test_images import damaged_files

from softvq.data import open_store
from softvq.encoding import write_tokens
from softvq.io import load_tensors
from softvq.recipe import TokenizerRecipe, load_recipe
from softvq.tokenizer import Tokenizer
from softvq.tokens import read_tokens
from softvq.train.tokenizer import TokenizerTask, train_tokenizer

ADVERSARY = [
    "adversary.weight=0.2", "adversary.width=8", "adversary.depth=2", "adversary.adaptive=true",
    "adversary.augment=0.5", "adversary.consistency=1", "adversary.lecam=0.001",
]  # fmt: skip


def test_an_adversarial_run_stopped_on_either_side_of_its_start_changes_nothing(tmp_path):
    source = photos(tmp_path / "photos", 40)
    settings = [
        f"data.source={source}", "train.images=256", "train.evaluate_every=256",
        "adversary.start=96", *ADVERSARY,
    ]  # fmt: skip
    recipe = load_recipe(TokenizerRecipe, "tiny", settings)
    assert train_tokenizer(recipe, tmp_path / "whole")
    task_loss = TokenizerTask.loss
    for stop in (64, 160):  # images seen at which the next step is told to be the last one

        def loss(self, net, batch, made=None, stop=stop):
            if batch.seen == stop:
                os.kill(os.getpid(), signal.SIGINT)
            return task_loss(self, net, batch, made)

        with pytest.MonkeyPatch.context() as patch:
            patch.setattr(TokenizerTask, "loss", loss)
            assert not train_tokenizer(recipe, tmp_path / "parts")
    assert train_tokenizer(recipe, tmp_path / "parts")
    name = "checkpoints/000000000256.safetensors"
    one, two = load_tensors(tmp_path / "whole" / name), load_tensors(tmp_path / "parts" / name)
    assert one.keys() == two.keys()
    assert all(torch.equal(one[key], two[key]) for key in one)
    assert one["adversary.lecam.real"] != 0
    assert any("running_mean" in key and one[key].any() for key in one)


@pytest.mark.slow
@pytest.mark.parametrize("kind", ["softvq", "kl", "adversarial"])
def test_kill_minus_9_changes_nothing(tmp_path, kind):
    """KL too: it draws random numbers in every step. The adversary begins between two kills."""
    changes = [f"model.bottleneck={kind}"]
    if kind == "adversarial":
        changes = ["adversary.start=1600", *ADVERSARY]
    settings = [
        *changes, "train.images=3200", "train.log_every=32",
        "train.evaluate_every=3200", "train.checkpoint_every=320",
    ]  # fmt: skip
    code = (
        "import sys; from pathlib import Path\n"
        "from softvq.recipe import TokenizerRecipe, load_recipe\n"
        "from softvq.train.tokenizer import train_tokenizer\n"
        f"recipe = load_recipe(TokenizerRecipe, 'tiny', {settings!r})\n"
        "train_tokenizer(recipe, Path(sys.argv[1]))"
    )
    assert_kills_change_nothing(code, tmp_path, [350, 1200, 2100], "model.safetensors")


def test_training_and_encoding_finish_on_a_folder_with_20_damaged_photos(tmp_path):
    source = photos(tmp_path / "photos", 180)
    wrong = damaged_files()
    assert len(wrong) >= 10
    bad = set()
    for name, (content, _) in list(wrong.items())[:10]:
        for copy in ("a", "b"):
            path = source / "class0" / f"{copy}-{name}"
            path.write_bytes(content)
            bad.add(path.name)
    recipe = load_recipe(TokenizerRecipe, "tiny", [f"data.source={source}", "train.images=64"])
    assert train_tokenizer(recipe, tmp_path / "run")
    listed = [
        json.loads(line)
        for line in (tmp_path / "run" / "photos" / "skipped.jsonl").read_text().splitlines()
    ]
    assert {item["path"].rsplit("/", 1)[-1] for item in listed} == bad
    assert all(item["reason"] for item in listed)
    store = open_store(source, "all", (32, 32), tmp_path / "cache", margin=1.0)
    write_tokens(tmp_path / "tokens", Tokenizer.from_pretrained(tmp_path / "run"), store)
    tokens = read_tokens(tmp_path / "tokens")
    assert len(tokens) == 180 and len(tokens.index.skipped) == 20
