"""Checkpoints of sharded runs: a folder of safetensors, of which each process writes its share.

    000000001280/shard-00001-model-00001-of-00001.safetensors
    000000001280.json    written last, when all shares are there

Written and read by ``torch.distributed.checkpoint``, which cuts anew for another number of
processes, also for one.
"""

import contextlib
import json
import shutil
import sys
import warnings
from collections.abc import Iterator
from concurrent.futures import Future
from pathlib import Path
from typing import Any

import torch
import torch.distributed.checkpoint as dcp
from torch import distributed as dist

from softvq.errors import UserError
from softvq.io import check_fit, write_atomically
from softvq.train.checkpoint import KEPT, Checkpoint, expected_slots, restore_optimizers


def _wait() -> None:
    if dist.is_initialized():
        dist.barrier()


@contextlib.contextmanager
def _quiet() -> Iterator[None]:
    with warnings.catch_warnings():  # that there is one process
        warnings.filterwarnings("ignore", message="torch.distributed is disabled")
        yield


class ShardedCheckpoint(Checkpoint):
    """A :class:`Checkpoint` that all processes save and restore together.

    With several processes :meth:`save` copies the tensors and returns; they are written while
    training goes on, and the note follows at the next save or at :meth:`finish`.
    """

    pending: tuple[int, Future[Any]] | None = None
    group: Any = None  # of its own, so that its messages do not meet those of training

    def save(self, seen: int) -> None:
        self.finish()
        folder = self.folder / f"{seen:012d}"
        first = not dist.is_initialized() or dist.get_rank() == 0
        if first and folder.exists():  # of a process that was killed before the note
            shutil.rmtree(folder)
        _wait()
        writer = dcp.HuggingFaceStorageWriter(str(folder), save_distributed=True)
        with _quiet():
            if dist.is_initialized():
                self.group = self.group or dist.new_group(backend="gloo")
                written = dcp.async_save(
                    self.tensors(), storage_writer=writer, process_group=self.group
                )
                assert isinstance(written, Future)
                self.pending = (seen, written)
            else:
                dcp.save(self.tensors(), storage_writer=writer)
                self._note(seen)

    def finish(self) -> None:
        if self.pending is not None:
            seen, written = self.pending
            self.pending = None
            written.result()
            self._note(seen)

    def _note(self, seen: int) -> None:
        """Say that a checkpoint is whole, and delete those that it follows."""
        folder = self.folder / f"{seen:012d}"
        _wait()
        if not dist.is_initialized() or dist.get_rank() == 0:
            write_atomically(folder.with_suffix(".json"), json.dumps({"seen": seen}) + "\n")
            notes = sorted(self.folder.glob("*.json"))
            for old in notes[:-KEPT]:
                old.unlink()
            kept = {note.stem for note in notes[-KEPT:]}
            for path in self.folder.iterdir():
                if path.is_dir() and path.name not in kept:
                    shutil.rmtree(path)
        _wait()

    def restore(self) -> int:
        complaints = []
        for note in sorted(self.folder.glob("*.json"), reverse=True):
            try:
                seen = json.loads(note.read_text(encoding="utf-8"))["seen"]
                self._load(note.with_suffix(""))
            except (OSError, ValueError, KeyError, TypeError, UserError, RuntimeError) as error:
                complaints.append(f"checkpoint {note.stem} is damaged ({error})")
                continue
            for complaint in complaints:
                print(f"{complaint}; using the one before it", file=sys.stderr)
            return int(seen)
        if complaints:
            raise UserError(
                f"{self.folder}: no checkpoint there can be used ({'; '.join(complaints)}); start "
                "again in another --out"
            )
        return 0

    def _load(self, folder: Path) -> None:
        reader = dcp.HuggingFaceStorageReader(str(folder))
        there = {name: torch.empty(0) for name in reader.read_metadata().state_dict_metadata}
        wanted = self.weights()
        slots = expected_slots(self.optimizers, there)
        wanted |= {name: torch.zeros_like(like) for name, like in slots.items()}
        check_fit({name: torch.empty(0) for name in wanted}, there, "checkpoint")
        with _quiet():
            dcp.load(wanted, storage_reader=reader)  # into the networks' own tensors
        slot = {name: tensor for name, tensor in wanted.items() if name in slots}
        restore_optimizers(self.optimizers, slot)

    def newest(self) -> Path | None:
        notes = sorted(self.folder.glob("*.json"))
        return notes[-1].with_suffix("") if notes else None
