"""What a study keeps in its folder: seconds, JSON, arrays; each file is whole or not there."""

import json
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np

from softvq.io import write_atomically
from softvq.study.arms import Arm


class Clock:
    """Seconds of each stage, over all the runs of a study, in ``out``/times.json."""

    def __init__(self, out: Path):
        self.path = out / "times.json"
        self.spent: dict[str, Any] = {}
        if self.path.is_file():
            self.spent = json.loads(self.path.read_text(encoding="utf-8"))

    @contextmanager
    def __call__(self, stage: str) -> Iterator[None]:
        started = time.perf_counter()
        yield
        self.spent[stage] = self.spent.get(stage, 0.0) + time.perf_counter() - started
        write_atomically(self.path, json.dumps(self.spent) + "\n")


def save_json(path: Path, content: Any) -> None:
    write_atomically(path, json.dumps(content, indent=1) + "\n")


def save_array(path: Path, array: np.ndarray) -> None:
    """A .npy file, the whole of it or none."""
    path.parent.mkdir(parents=True, exist_ok=True)
    partial = path.with_name(path.name + ".partial")
    with partial.open("wb") as file:
        np.save(file, array)
    partial.replace(path)


def rebuilt(out: Path, arm: Arm, rung: int) -> np.ndarray:
    """Held-out photos after a rung."""
    return np.load(out / "arms" / arm.name / f"rebuilt-{rung}.npy")
