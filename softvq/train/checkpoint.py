"""Checkpoints: one safetensors file each, with a checksum beside it; the last two are kept."""

import hashlib
import json
import sys
from collections.abc import Callable
from pathlib import Path

import torch
from torch import Tensor, nn

from softvq.errors import UserError
from softvq.io import check_fit, load_tensors, save_tensors, write_atomically
from softvq.train.muon import Muon
from softvq.train.parallel import local

KEPT = 2


class Checkpoint:
    """All that a run goes on from: its networks, by name, and the state of their optimizers."""

    def __init__(
        self, folder: Path, parts: dict[str, nn.Module], optimizers: list[torch.optim.Optimizer]
    ):
        self.folder, self.parts, self.optimizers = folder, parts, optimizers
        folder.mkdir(parents=True, exist_ok=True)

    def weights(self) -> dict[str, Tensor]:
        """Every tensor of every network: parameters and buffers."""
        return {
            f"{name}.{key}": tensor
            for name, part in self.parts.items()
            for key, tensor in part.state_dict().items()
        }

    def tensors(self) -> dict[str, Tensor]:
        """All that is saved."""
        return self.weights() | optimizer_tensors(self.optimizers)

    @torch.no_grad()
    def damaged(self) -> list[str]:
        """Names of the tensors that hold a number which is not finite."""
        floats = ((k, v) for k, v in self.tensors().items() if v.is_floating_point())
        return [name for name, tensor in floats if not local(tensor).isfinite().all()]

    def save(self, seen: int) -> None:
        """Write the state at ``seen`` images."""
        save_checkpoint(self.folder, seen, self.tensors())

    def finish(self) -> None:
        """Wait until what :meth:`save` began is on the disk."""

    def restore(self) -> int:
        """Go back to the newest good checkpoint; returns the images it has seen, 0 for none.

        Those passed over are named on stderr. Raises UserError if there are some and none is good.
        """
        seen, state, complaints = load_newest(self.folder, self.check)
        for complaint in complaints:
            print(f"{complaint}; using the one before it", file=sys.stderr)
        if state:
            for name, part in self.parts.items():
                start = f"{name}."
                own = {k.removeprefix(start): v for k, v in state.items() if k.startswith(start)}
                part.load_state_dict(own)
            restore_optimizers(self.optimizers, state)
        return seen

    def check(self, state: dict[str, Tensor]) -> None:
        """Raises UserError if a tensor is missing, extra or of another shape."""
        slots = expected_slots(self.optimizers, state)
        known = {k: v for k, v in state.items() if not k.startswith("optimizer.")}
        check_fit(self.weights(), known, "checkpoint")
        check_fit(slots, {k: v for k, v in state.items() if k not in known}, "checkpoint")

    def newest(self) -> Path | None:
        """The newest checkpoint there is, whose numbers were finite when it was written."""
        notes = sorted(self.folder.glob("*.json"))
        return notes[-1].with_suffix(".safetensors") if notes else None


def optimizer_tensors(optimizers: list[torch.optim.Optimizer]) -> dict[str, Tensor]:
    """Every state tensor of every optimizer, under a flat name."""
    return {
        f"optimizer.{o}.{p}.{name}": tensor
        for o, optimizer in enumerate(optimizers)
        for p, state in optimizer.state_dict()["state"].items()
        for name, tensor in state.items()
    }


def expected_slots(
    optimizers: list[torch.optim.Optimizer], state: dict[str, Tensor]
) -> dict[str, Tensor]:
    """What :func:`optimizer_tensors` would give, for those parameters that ``state`` knows of.

    A parameter without a gradient so far has no state, so which there are is taken from ``state``.
    """
    names: dict[type, dict[str, bool]] = {  # and whether they are of the parameter's shape
        torch.optim.AdamW: {"step": False, "exp_avg": True, "exp_avg_sq": True},
        Muon: {"momentum_buffer": True},
    }
    expected: dict[str, Tensor] = {}
    for o, optimizer in enumerate(optimizers):
        parameters = [p for group in optimizer.param_groups for p in group["params"]]
        for p, parameter in enumerate(parameters):
            start = f"optimizer.{o}.{p}."
            if any(key.startswith(start) for key in state):
                for name, alike in names[type(optimizer)].items():
                    expected[start + name] = parameter if alike else torch.zeros(())
    return expected


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


def load_newest(
    folder: Path, check: Callable[[dict[str, Tensor]], None] = lambda state: None
) -> tuple[int, dict[str, Tensor], list[str]]:
    """(images seen, state, complaints) of the newest undamaged checkpoint; (0, {}, []) if none.

    ``check`` raises UserError for a state that cannot be used. Raises UserError if there are
    checkpoints and all are damaged: to begin again would overwrite what may still be saved.
    """
    complaints: list[str] = []
    for note in sorted(folder.glob("*.json"), reverse=True):
        weights = note.with_suffix(".safetensors")
        why = ""
        try:
            stated = json.loads(note.read_text(encoding="utf-8"))
            if _sha256(weights) == stated["sha256"] and isinstance(stated["seen"], int):
                state = load_tensors(weights)
                check(state)
                return stated["seen"], state, complaints
        except UserError as error:
            why = f" ({error})"
        except (OSError, ValueError, KeyError, TypeError):
            pass
        complaints.append(f"checkpoint {weights} is damaged{why}")
    if complaints:
        raise UserError(
            f"{folder}: no checkpoint there can be used ({'; '.join(complaints)}); "
            "start again in another --out"
        )
    return 0, {}, complaints
