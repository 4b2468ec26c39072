"""The folder of a run: who may work in it, its recipe, and its metrics."""

import contextlib
import json
import os
import sys
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import yaml
from tensorboard.compat.proto.event_pb2 import Event, SessionLog
from tensorboard.compat.proto.summary_pb2 import Summary
from tensorboard.summary.writer.record_writer import RecordWriter

from softvq.errors import UserError, first_started
from softvq.io import locked, naming_full_disk, sweep, write_atomically
from softvq.outputs import LOCK, check_folder, refuse_overlap

RECIPE = "recipe.yaml"


@contextlib.contextmanager
def open_run(folder: Path, recipe: str, source: str = "builtin") -> Iterator[None]:
    """Hold a run's folder alone, made if it is new, with its recipe in it.

    A run that has a checkpoint keeps its recipe, see :func:`claim`. ``source``: the photos, which
    must lie elsewhere. Raises UserError for another recipe, if the folder holds anything but a run,
    and if another training works there.
    """
    if not first_started():  # of one torchrun, the first process holds it for all
        yield
        return
    refuse_overlap(source, folder)
    check_folder(folder, RECIPE)
    busy = (
        f"{folder}: another training is running in this folder; wait for its end, or choose "
        "another --out"
    )
    with locked(folder / LOCK, busy):
        sweep(folder)
        if any((folder / "checkpoints").glob("*.json")):
            claim(folder, recipe)
        write_atomically(folder / RECIPE, recipe)
        yield


def claim(folder: Path, recipe: str) -> None:
    """Write the recipe into a new run's folder, or check that the run there has the same one.

    A larger train.images is taken too: a run goes on for longer. Raises UserError.
    """
    path = folder / RECIPE
    old = recipe
    if path.is_file():
        try:
            old = path.read_text(encoding="utf-8")
        except UnicodeDecodeError:
            raise UserError(f"{path}: damaged (not text); choose another --out") from None
    if old != recipe and not _longer(recipe, old):
        changed = sorted(line.strip() for line in set(recipe.split("\n")) ^ set(old.split("\n")))
        raise UserError(
            f"{folder} holds a run with another recipe ({'; '.join(changed)}); "
            "repeat its recipe to go on with it, or choose another --out"
        )
    write_atomically(path, recipe)


def _longer(new: str, old: str) -> bool:
    """Whether a recipe, as YAML, is the old one with more images to train for."""
    try:
        ours, theirs = yaml.safe_load(new), yaml.safe_load(old)
        images = theirs["train"]["images"]
        longer = ours["train"]["images"] > images
        ours["train"]["images"] = images
    except (yaml.YAMLError, TypeError, KeyError):
        return False
    return longer and ours == theirs


def read_metrics(path: Path) -> tuple[list[dict[str, Any]], int]:
    """The lines of a metrics.jsonl, and how many were damaged and left out."""
    found, damaged = [], 0
    for line in path.read_bytes().splitlines():
        try:
            values = json.loads(line)
            if not isinstance(values["seen"], int):
                raise TypeError
            found.append(values)
        except (ValueError, KeyError, TypeError):  # as the line that a kill cut short
            damaged += 1
    return found, damaged


def metrics(folder: Path, name: str) -> list[dict[str, float]]:
    """The lines of a run's metrics.jsonl that hold ``name``."""
    return [values for values in read_metrics(folder / "metrics.jsonl")[0] if name in values]


class Journal:
    """Metrics as JSON lines and TensorBoard curves; on resume, lines after the checkpoint go."""

    def __init__(self, folder: Path, seen: int):
        self.path = folder / "metrics.jsonl"
        if self.path.is_file():
            found, damaged = read_metrics(self.path)
            if damaged:
                print(f"{self.path}: {damaged} damaged lines left out", file=sys.stderr)
            lines = [json.dumps(values) + "\n" for values in found if values["seen"] <= seen]
            write_atomically(self.path, "".join(lines))
        self.curves = Curves(folder / "tensorboard", seen)

    def write(self, seen: int, values: dict[str, float]) -> None:
        """Add a line. Raises UserError if the disk, a quota or a limit has no room for it."""
        line = json.dumps({"seen": seen} | values) + "\n"
        with naming_full_disk(self.path), self.path.open("a", encoding="utf-8") as file:
            file.write(line)
        self.curves.write(seen, values)


class Curves:
    """A file of scalars for TensorBoard, where lines of older files after ``seen`` no longer count.

    Written here and now: of the thread that torch's SummaryWriter leaves it to, a full disk is
    nobody's error.
    """

    def __init__(self, folder: Path, seen: int):
        folder.mkdir(parents=True, exist_ok=True)
        self.path = folder / f"events.out.tfevents.{time.time_ns()}.{os.getpid()}"
        start = SessionLog(status=SessionLog.START)
        self._add(Event(file_version="brain.Event:2"), Event(step=seen + 1, session_log=start))

    def write(self, seen: int, values: dict[str, float]) -> None:
        """Add a point to the curve of each name. Raises UserError for a full disk."""
        points = [Summary.Value(tag=name, simple_value=value) for name, value in values.items()]
        self._add(Event(step=seen, summary=Summary(value=points)))

    def _add(self, *events: Event) -> None:
        with naming_full_disk(self.path), self.path.open("ab") as file:
            for event in events:
                event.wall_time = time.time()
                RecordWriter(file).write(event.SerializeToString())
