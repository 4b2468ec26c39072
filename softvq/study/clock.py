"""How long each stage took, over all the runs of a study."""

import json
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from softvq.io import write_atomically
from softvq.study.records import read

TIMES = "times.json"  # in a study's folder, its first file


class Clock:
    """Seconds of each stage, kept in ``out``/times.json. Raises UserError if that is damaged."""

    def __init__(self, out: Path):
        self.path = out / TIMES
        self.spent: dict[str, float] = {}
        if self.path.is_file():
            self.spent = read(dict[str, float], self.path, "delete it: only times are lost")
        self._write()

    @contextmanager
    def __call__(self, stage: str) -> Iterator[None]:
        started = time.perf_counter()
        yield
        self.spent[stage] = self.spent.get(stage, 0.0) + time.perf_counter() - started
        self._write()

    def _write(self) -> None:
        write_atomically(self.path, json.dumps(self.spent) + "\n")
