"""Whole files or none: the atomic writer, full disks, locks."""

import errno
import os
import resource
import subprocess
import sys

import numpy as np
import pytest
import torch
from safetensors import SafetensorError

from softvq import images
from softvq.errors import UserError
from softvq.io import (
    check_finite,
    locked,
    no_space,
    replacing,
    save_array,
    save_tensors,
    sweep,
    write_atomically,
)


def test_an_error_while_writing_changes_nothing(tmp_path):
    path = tmp_path / "a" / "b.txt"
    write_atomically(path, "old")
    with pytest.raises(RuntimeError), replacing(path) as partial:
        partial.write_text("half of it")
        raise RuntimeError
    assert path.read_text() == "old" and os.listdir(path.parent) == ["b.txt"]


def test_the_old_file_is_there_until_the_new_one_is_whole(tmp_path):
    write_atomically(tmp_path / "a", "old")
    with replacing(tmp_path / "a") as partial:
        partial.write_text("new")
        assert (tmp_path / "a").read_text() == "old"
    assert (tmp_path / "a").read_text() == "new"


@pytest.mark.parametrize(
    "write",
    [
        lambda path: write_atomically(path, "ours"),
        lambda path: save_tensors({"x": torch.ones(2)}, path),
        lambda path: save_array(path, np.ones(2)),
        lambda path: images.save_png(images.to_pil(torch.zeros(1, 3, 8, 8))[0], path),
    ],
)
def test_nothing_is_written_through_a_planted_link(tmp_path, write):
    theirs = tmp_path / "theirs"
    theirs.write_text("theirs")
    out = tmp_path / "out"
    out.mkdir()
    for name in ("1.png", "1.png.partial", "1.png.tmp"):
        (out / name).symlink_to(theirs)
    write(out / "1.png")
    assert theirs.read_text() == "theirs"
    assert not (out / "1.png").is_symlink()


def test_files_have_the_mode_of_any_other_file(tmp_path):
    plain = tmp_path / "plain"
    plain.touch()
    write_atomically(tmp_path / "text", "x")
    save_tensors({"x": torch.ones(2)}, tmp_path / "tensors")
    for name in ("text", "tensors"):
        assert (tmp_path / name).stat().st_mode == plain.stat().st_mode


def test_a_name_as_long_as_the_system_allows(tmp_path):
    write_atomically(tmp_path / ("x" * 255), "long")
    assert (tmp_path / ("x" * 255)).read_text() == "long"


def test_more_than_the_disk_has_is_refused_before_it_is_written(tmp_path):
    with pytest.raises(UserError, match=r"disk is full; it takes .* MB, and .* MB are free in"):
        with replacing(tmp_path / "a" / "b", needed=10**18):
            raise AssertionError
    assert os.listdir(tmp_path / "a") == []


@pytest.mark.parametrize(
    ("error", "says"),
    [
        (OSError(errno.ENOSPC, "x"), "the disk is full"),
        (OSError(errno.EDQUOT, "x"), "your quota of the disk is used up"),
        (OSError(errno.EFBIG, "x"), "no file as large"),
        (SafetensorError("I/O error: File too large (os error 27)"), "no file as large"),
        (SafetensorError("I/O error: No space left on device (os error 28)"), "the disk is full"),
    ],
)
def test_every_way_to_run_out_of_room_is_one_line_naming_the_disk(tmp_path, error, says):
    with pytest.raises(UserError, match=says) as raised, replacing(tmp_path / "new" / "file"):
        raise error
    assert f"are free in {tmp_path}" in str(raised.value)


def test_other_errors_stay_what_they_are():
    assert no_space(OSError(errno.EACCES, "x"), "a") is None
    assert no_space(SafetensorError("invalid header"), "a") is None


LIMITED = """
import numpy as np, torch
from softvq.errors import UserError
from softvq.io import save_array, save_tensors
for write in (
    lambda path: save_tensors({"x": torch.ones(1 << 20)}, path),
    lambda path: save_array(path, np.ones(1 << 20)),
):
    try:
        write("big")
    except UserError as error:
        print(error)
"""


def test_a_limit_on_the_size_of_files_is_one_line(tmp_path):
    # Python and its children only: the limit would hold for pytest's own files.
    done = subprocess.run(
        [sys.executable, "-c", LIMITED],
        cwd=tmp_path,
        env=os.environ | {"PYTHONPATH": os.pathsep.join(filter(None, sys.path))},
        capture_output=True,
        text=True,
        preexec_fn=lambda: resource.setrlimit(resource.RLIMIT_FSIZE, (1 << 20, 1 << 20)),
    )
    lines = done.stdout.splitlines()
    assert len(lines) == 2 and all("ulimit -f" in line for line in lines), done.stderr
    assert os.listdir(tmp_path) == []


def test_sweep_deletes_what_killed_writers_left_and_nothing_else(tmp_path):
    for name in (".0123.partial", "mine.partial", ".hidden"):
        (tmp_path / name).touch()
    sweep(tmp_path)
    assert sorted(os.listdir(tmp_path)) == [".hidden", "mine.partial"]


def test_a_lock_keeps_others_out_and_leaves_nothing(tmp_path):
    lock = tmp_path / "new" / ".lock"
    with locked(lock):
        with pytest.raises(UserError, match="busy: wait"), locked(lock, "busy: wait"):
            raise AssertionError
    assert os.listdir(lock.parent) == []
    with locked(lock, "busy: wait"):
        pass


@pytest.mark.parametrize("kind", [torch.tensor, np.array])
def test_values_that_are_not_finite_are_named(kind):
    assert check_finite(kind([1.0, 2.0]), "it") is not None
    for bad in (float("nan"), float("inf")):
        with pytest.raises(UserError, match="the decoder gave values that are not finite"):
            check_finite(kind([1.0, bad]), "the decoder")
    with pytest.raises(UserError):
        check_finite(float("nan"), "psnr")
