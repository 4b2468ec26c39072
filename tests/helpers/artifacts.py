"""What is dear to make: behind the fixtures ``trained`` and ``studied`` of conftest."""

import contextlib
import io
import shutil
from pathlib import Path

import torch

from helpers.pictures import tiles
from softvq import cli
from softvq.tokenizer import Tokenizer

STEPS = ["train.images=128", "train.evaluate_every=128", "train.log_every=64"]


def train_tokenizer(folder: Path) -> int:
    """The exit code of training the tiny tokenizer in a folder for a few steps."""
    command = ["train", "tokenizer", "--recipe", "tiny", "--data", "builtin"]
    return cli.main([*command, "--out", str(folder), *STEPS])


def train_both(folder: Path) -> None:
    """A tokenizer and a generator of its tokens, in the folders of these names."""
    tokenizer = folder / "tokenizer"
    assert train_tokenizer(tokenizer) == 0
    command = ["train", "generator", "--recipe", "tiny-generator", "--data", "builtin"]
    command += ["--tokenizer", str(tokenizer), "--out", str(folder / "generator")]
    assert cli.main([*command, *STEPS, "views=1"]) == 0


def nested_tokenizer(folder: Path) -> Path:
    """An untrained nested tokenizer of 32 x 32 pixels and 8 tokens, in ``folder``/init."""
    from test_nested import PAIRS, spectral

    torch.manual_seed(0)
    Tokenizer(spectral(**PAIRS)).save_pretrained(folder / "init")
    return folder / "init"


def study(root: Path, out: Path, *more: str) -> int:
    """The exit code of a study of the photos, masks and init in ``root``."""
    places = ["--data", str(root / "photos"), "--masks", str(root / "masks"), "--out", str(out)]
    some = ["--init", str(root / "init"), "--tokens", "1,8", "--images", "64"]
    return cli.main(["study", *places, *some, *more])


def study_tiles(folder: Path) -> None:
    """A study in ``out``, with one damaged photo and one photo in both splits, left out.

    What it printed is in said.txt.
    """
    photos, _ = tiles(folder, train=32, val=16)
    nested_tokenizer(folder)
    (photos / "train" / "good" / "bad.png").write_bytes(b"no picture")
    shutil.copy(photos / "train" / "good" / "0.png", photos / "val" / "good" / "again.png")
    said = io.StringIO()
    with contextlib.redirect_stdout(said), contextlib.redirect_stderr(said):
        assert study(folder, folder / "out", "--drop-leaks") == 0
    (folder / "said.txt").write_text(said.getvalue())
