"""Saving and loading: a flat config.json beside model.safetensors, strict in both."""

import dataclasses
import difflib
import json
import os
from pathlib import Path
from pickle import UnpicklingError
from typing import Any, TypeVar

import torch
from safetensors import SafetensorError
from safetensors.torch import load_file, save_file

from softvq.errors import UserError

Model = TypeVar("Model", bound=torch.nn.Module)


def unknown_key(key: str, known: list[str], where: str) -> UserError:
    """The error for a key nobody knows, naming the nearest known one."""
    near = difflib.get_close_matches(key, known, n=1, cutoff=0.5)
    hint = f"did you mean '{near[0]}'?" if near else f"known keys: {', '.join(sorted(known))}"
    return UserError(f"{where}: unknown key '{key}'; {hint}")


def write_atomically(path: Path, text: str) -> None:
    """Write text so that a reader sees the old file or the whole new one."""
    path.parent.mkdir(parents=True, exist_ok=True)
    partial = path.with_name(path.name + ".partial")
    partial.write_text(text, encoding="utf-8")
    os.replace(partial, path)


def save_tensors(
    tensors: dict[str, torch.Tensor], path: Path, metadata: dict[str, str] | None = None
) -> None:
    """Write a safetensors file atomically. Tensors are moved to the CPU and made contiguous."""
    path.parent.mkdir(parents=True, exist_ok=True)
    partial = path.with_name(path.name + ".partial")
    partial.touch()
    mode = partial.stat().st_mode  # safetensors would leave a file that only its owner may read
    save_file({k: v.detach().cpu().contiguous() for k, v in tensors.items()}, partial, metadata)
    partial.chmod(mode)
    os.replace(partial, path)


def load_tensors(path: Path) -> dict[str, torch.Tensor]:
    """Read a safetensors file. Raises UserError if it is missing or damaged."""
    if not path.is_file():
        raise UserError(f"{path}: no such file")
    try:
        return load_file(path)
    except (SafetensorError, OSError) as error:
        raise UserError(f"{path}: not a readable safetensors file ({error})") from None


def load_weights(path: str | Path) -> dict[str, torch.Tensor]:
    """A state dict from a local .safetensors or .pth file.

    Networks of other projects are still handed round as .pth: that is read with ``weights_only``,
    which builds tensors and runs nothing. Raises UserError if the file is missing, damaged or
    holds anything else than named tensors.
    """
    path = Path(path)
    if path.suffix == ".safetensors" or not path.is_file():
        return load_tensors(path)
    try:
        state = torch.load(path, map_location="cpu", weights_only=True)
    except (UnpicklingError, RuntimeError, EOFError, OSError, KeyError) as error:
        reason = str(error).splitlines()[0]
        raise UserError(f"{path}: not a file of weights alone ({reason})") from None
    if not isinstance(state, dict) or not all(isinstance(v, torch.Tensor) for v in state.values()):
        raise UserError(f"{path}: not a state dict; save the network's named tensors alone")
    return state


def make_config(config_class: type, values: dict[str, Any], where: str) -> Any:
    """A flat config dataclass from a dict; an unknown key raises UserError with the nearest one."""
    known = [field.name for field in dataclasses.fields(config_class)]
    for key in values:
        if key not in known:
            raise unknown_key(key, known, where)
    return config_class(**values)


def read_config(directory: Path) -> dict[str, Any]:
    """The values of a directory's config.json. Raises UserError if it is missing or damaged."""
    path = directory / "config.json"
    if not path.is_file():
        raise UserError(f"{directory}: no config.json there; give a directory saved by softvq")
    try:
        values = json.loads(path.read_text(encoding="utf-8"))
    except (json.JSONDecodeError, UnicodeDecodeError) as error:
        raise UserError(f"{path}: not valid JSON ({error})") from None
    if not isinstance(values, dict):
        raise UserError(f"{path}: not a JSON object")
    return values


def save_model(model: Any, directory: str | Path, half: bool = False) -> None:
    """Write ``config.json`` (model.config, a flat dataclass) and ``model.safetensors``.

    ``half`` stores floating-point weights in float16; loading restores float32.
    """
    directory = Path(directory)
    state = model.state_dict()
    if half:
        state = {k: v.half() if v.is_floating_point() else v for k, v in state.items()}
    config = {"model": type(model).__name__} | dataclasses.asdict(model.config)
    save_tensors(state, directory / "model.safetensors")
    write_atomically(directory / "config.json", json.dumps(config, indent=2) + "\n")


def load_model(model_class: type[Model], config_class: type, directory: str | Path) -> Model:
    """Build ``model_class(config)`` and load its weights strictly, in evaluation mode.

    Raises UserError if a file is missing or damaged, a config key is unknown, the directory holds
    another kind of model, or any tensor is missing, extra or of another shape (all are listed).
    """
    directory = Path(directory)
    values = read_config(directory)
    kind = values.pop("model", model_class.__name__)
    if kind != model_class.__name__:
        raise UserError(f"{directory}: holds a {kind}, not a {model_class.__name__}")
    model = model_class(make_config(config_class, values, str(directory / "config.json")))
    load_strictly(model, load_tensors(directory / "model.safetensors"), str(directory))
    return model.eval()


def check_fit(
    expected: dict[str, torch.Tensor], state: dict[str, torch.Tensor], where: str
) -> None:
    """Raises UserError listing the missing, extra and misshaped tensors of a state dict."""
    faults = [f"missing {key}" for key in expected if key not in state]
    faults += [f"extra {key}" for key in state if key not in expected]
    faults += [
        f"{key} is {list(state[key].shape)}, expected {list(value.shape)}"
        for key, value in expected.items()
        if key in state and state[key].shape != value.shape
    ]
    if faults:
        shown = "; ".join(faults[:20]) + (f"; and {len(faults) - 20} more" if faults[20:] else "")
        raise UserError(f"{where}: weights do not fit the config: {shown}")


def load_strictly(model: torch.nn.Module, state: dict[str, torch.Tensor], where: str) -> None:
    """Load a state dict; raises UserError listing missing, extra and misshaped tensors."""
    check_fit(model.state_dict(), state, where)
    model.load_state_dict(state)
