"""What is dear to make: behind the fixtures ``trained`` and ``studied`` of conftest."""

import contextlib
import io
import shutil
from functools import partial
from pathlib import Path

import pytest

from helpers.pictures import SIDE, tiles
from softvq import cli

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


def study(photos: Path, masks: Path, out: Path, *more: str) -> int:
    """The exit code of a study of one arm."""
    places = ["--data", str(photos), "--masks", str(masks), "--out", str(out)]
    arm = ["--size", str(SIDE), "--tokens", "4", "--bottlenecks", "softvq", "--images", "128"]
    return cli.main(["study", *places, *arm, *more])


def study_tiles(folder: Path) -> None:
    """A study in ``out``, with one damaged photo and one photo in both splits, left out.

    What it printed is in said.txt.
    """
    from softvq.study import study as module

    photos, masks = tiles(folder)
    (photos / "train" / "good" / "bad.png").write_bytes(b"no picture")
    shutil.copy(photos / "train" / "good" / "0.png", photos / "val" / "good" / "again.png")
    said = io.StringIO()
    with (
        pytest.MonkeyPatch.context() as patch,
        contextlib.redirect_stdout(said),
        contextlib.redirect_stderr(said),
    ):
        patch.setattr("softvq.study.trying.rungs.FEWEST", 4)  # as many photos as are asked for
        patch.setattr(module, "train_detector", partial(module.train_detector, steps=150))
        assert study(photos, masks, folder / "out", "--drop-leaks") == 0
    (folder / "said.txt").write_text(said.getvalue())
