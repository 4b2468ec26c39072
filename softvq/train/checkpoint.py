"""Checkpoints: one safetensors file each, with a checksum beside it; the last two are kept."""

import hashlib
import json
from pathlib import Path

import torch
from torch import Tensor

from softvq.io import load_tensors, save_tensors, write_atomically

KEPT = 2


def optimizer_tensors(optimizers: list[torch.optim.Optimizer]) -> dict[str, Tensor]:
    """Every state tensor of every optimizer, under a flat name."""
    return {
        f"optimizer.{o}.{p}.{name}": tensor
        for o, optimizer in enumerate(optimizers)
        for p, state in optimizer.state_dict()["state"].items()
        for name, tensor in state.items()
    }


def restore_optimizers(optimizers: list[torch.optim.Optimizer], state: dict[str, Tensor]) -> None:
    """Put back what :func:`optimizer_tensors` gave."""
    for o, optimizer in enumerate(optimizers):
        slots: dict[int, dict[str, Tensor]] = {}
        for key, tensor in state.items():
            if key.startswith(f"optimizer.{o}."):
                _, _, p, name = key.split(".", 3)
                slots.setdefault(int(p), {})[name] = tensor
        groups = optimizer.state_dict()["param_groups"]
        optimizer.load_state_dict({"state": slots, "param_groups": groups})


def _sha256(path: Path) -> str:
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def save_checkpoint(folder: Path, seen: int, state: dict[str, Tensor]) -> None:
    """Write the state at ``seen`` images; the JSON comes last, so a half-written one has none."""
    weights = folder / f"{seen:012d}.safetensors"
    save_tensors(state, weights)
    note = {"seen": seen, "sha256": _sha256(weights)}
    write_atomically(weights.with_suffix(".json"), json.dumps(note) + "\n")
    for old in sorted(folder.glob("*.json"))[:-KEPT]:
        old.unlink()
    kept = {path.stem for path in folder.glob("*.json")}
    for file in folder.iterdir():
        if file.name.split(".")[0] not in kept:
            file.unlink()


def load_newest(folder: Path) -> tuple[int, dict[str, Tensor], list[str]]:
    """(images seen, state, complaints) of the newest undamaged checkpoint; (0, {}, ...) if none."""
    complaints: list[str] = []
    for note in sorted(folder.glob("*.json"), reverse=True):
        weights = note.with_suffix(".safetensors")
        try:
            stated = json.loads(note.read_text(encoding="utf-8"))
            if _sha256(weights) == stated["sha256"]:
                return stated["seen"], load_tensors(weights), complaints
        except (OSError, ValueError, KeyError, TypeError):
            pass
        complaints.append(f"checkpoint {weights} is damaged; using the one before it")
    return 0, {}, complaints
