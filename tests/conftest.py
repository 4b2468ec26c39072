"""Shared by all tests: what is dear to make is made once, whichever process needs it first."""

import os
import shutil
from collections.abc import Callable
from pathlib import Path

import pytest
from filelock import FileLock

# Tiny models are slower on several threads than on one, and tests then disturb each other.
# Set before torch is imported, here and in the processes that tests start.
os.environ.setdefault("OMP_NUM_THREADS", "1")


@pytest.fixture(scope="session")
def once(tmp_path_factory) -> Callable[[Callable[[Path], None]], Path]:
    """``once(build)``: the folder that ``build(folder)`` fills, the same in all processes.

    Nobody changes what lies there: a test that must, copies it.
    """
    base = tmp_path_factory.getbasetemp()
    if "PYTEST_XDIST_WORKER" in os.environ:
        base = base.parent  # of all processes

    def folder(build: Callable[[Path], None]) -> Path:
        path = base / build.__name__
        built = base / f"{build.__name__}.built"
        with FileLock(base / f"{build.__name__}.lock"):
            if not built.exists():
                shutil.rmtree(path, ignore_errors=True)  # of a process where it failed
                path.mkdir()
                build(path)
                built.touch()
        return path

    return folder


@pytest.fixture(scope="session")
def trained(once) -> Path:
    """``tokenizer`` and ``generator``: each trained for a few steps on the built-in photos."""
    from helpers.artifacts import train_both

    return once(train_both)


@pytest.fixture(scope="session")
def studied(once) -> Path:
    """``photos``, ``masks`` and ``out``: a study of tiles; ``said.txt`` it printed."""
    from helpers.artifacts import study_tiles

    return once(study_tiles)
