"""Saving and loading: whole files or none, and a flat config.json beside model.safetensors."""

import contextlib
import dataclasses
import errno
import json
import math
import os
import re
import secrets
import shutil
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any, TypeVar

import numpy as np
import torch
from filelock import FileLock, Timeout
from safetensors import SafetensorError, safe_open
from safetensors.torch import load_file, save_file
from torch.overrides import TorchFunctionMode

from softvq.errors import UserError, unknown_key

Model = TypeVar("Model", bound=torch.nn.Module)
Checked = TypeVar("Checked", torch.Tensor, np.ndarray, float)

PARTIAL = ".partial"  # the end of the name of a file that is being written


NUMPY = -1
NO_SPACE = {
    NUMPY: "the disk, a quota or ulimit -f lets no more of it be written",
    errno.ENOSPC: "the disk is full",
    errno.EDQUOT: "your quota of the disk is used up",
    errno.EFBIG: "the system allows no file as large (ulimit -f, or the kind of file system)",
}


def no_space(error: BaseException, path: str | Path, needed: int | None = None) -> UserError | None:
    """The error for a file that found no room on its disk; None if ``error`` is another one.

    ``needed``: bytes of the whole file, where they are known. safetensors gives the system's error
    as text alone, and numpy only says that less was written than there is.
    """
    number = error.errno if isinstance(error, OSError) else None
    if isinstance(error, SafetensorError) and (found := re.search(r"os error (\d+)", str(error))):
        number = int(found[1])
    if number is None and re.search(r"\d+ requested and \d+ written", str(error)):
        number = NUMPY
    if number not in NO_SPACE:
        return None
    folder = next(p for p in (Path(path).absolute(), *Path(path).absolute().parents) if p.is_dir())
    free = shutil.disk_usage(folder).free
    takes = "" if needed is None else f"it takes {needed / 1e6:,.1f} MB, and "
    return UserError(
        f"{path}: {NO_SPACE[number]}; {takes}{free / 1e6:,.1f} MB are free in {folder}: make room "
        "there, or give another disk, and repeat the command"
    )


@contextlib.contextmanager
def naming_full_disk(path: str | Path, needed: int | None = None) -> Iterator[None]:
    """What runs inside writes to ``path``; without room for it, the UserError of ``no_space``."""
    try:
        yield
    except (OSError, SafetensorError) as error:
        if full := no_space(error, path, needed):
            raise full from None
        raise


@contextlib.contextmanager
def replacing(path: str | Path, needed: int | None = None, durable: bool = True) -> Iterator[Path]:
    """Write a file so that readers see the old one or the whole new one, and nothing in between.

    >>> with replacing("a/b.npy") as partial:
    ...     np.save(partial, array)      # an empty file in the same folder, with a name of its own

    The folder is made. Whatever has the name ``path`` is replaced at the end, a link as a link:
    nothing is written through it. After an error nothing is changed. ``needed``: bytes that the
    file will take, asked for before anything is written. ``durable``: the file is on the disk, not
    only in the system's memory, when this returns; for pictures by the thousand that is slow.

    Raises UserError if the disk, a quota or a limit has no room for the file.
    """
    path = Path(path)
    with naming_full_disk(path, needed):
        path.parent.mkdir(parents=True, exist_ok=True)
        if needed is not None and shutil.disk_usage(path.parent).free < needed:
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC), str(path))
        partial = path.with_name(f".{secrets.token_hex(8)}{PARTIAL}")
        # Exclusive: a name that somebody planted is an error, and never what is written to.
        os.close(os.open(partial, os.O_CREAT | os.O_EXCL | os.O_WRONLY, 0o666))
        mode = partial.stat().st_mode
        try:
            yield partial
            partial.chmod(mode)  # safetensors leaves a file that only its owner may read
            if durable:
                _flush(partial)
            os.replace(partial, path)
        finally:
            partial.unlink(missing_ok=True)
        if durable and hasattr(os, "O_DIRECTORY"):
            _flush(path.parent)


def _flush(path: Path) -> None:
    """Have the system put a file, or the names in a folder, on the disk."""
    handle = os.open(path, os.O_RDONLY if path.is_dir() else os.O_RDWR)
    try:
        os.fsync(handle)
    finally:
        os.close(handle)


def sweep(folder: str | Path) -> None:
    """Delete what killed writers left in a folder; call it only where nobody else is writing."""
    for left in Path(folder).glob(f".*{PARTIAL}"):
        left.unlink(missing_ok=True)


@contextlib.contextmanager
def locked(path: str | Path, busy: str | None = None) -> Iterator[None]:
    """Hold the lock file ``path`` alone; the system lets go of it even if the process is killed.

    ``busy``: what a UserError says at once if another process holds it; without, wait for it. The
    file is gone afterwards.
    """
    path = Path(path)
    path.parent.mkdir(parents=True, exist_ok=True)
    lock = FileLock(path)
    try:
        lock.acquire(timeout=-1 if busy is None else 0)
    except Timeout:
        raise UserError(busy or "") from None
    try:
        yield
    finally:
        # Deleted while it is held: who waits for the deleted file notices, and makes a new one.
        with contextlib.suppress(OSError):  # Windows deletes no open file
            path.unlink()
        lock.release()


def write_atomically(path: str | Path, text: str) -> None:
    """Write a text file as :func:`replacing` does."""
    with replacing(path) as partial:
        partial.write_text(text, encoding="utf-8")


def save_array(path: str | Path, array: np.ndarray) -> None:
    """Write a .npy file as :func:`replacing` does."""
    with replacing(path, array.nbytes) as partial, partial.open("wb") as file:
        np.save(file, array, allow_pickle=False)


def save_tensors(
    tensors: dict[str, torch.Tensor], path: str | Path, metadata: dict[str, str] | None = None
) -> None:
    """Write a safetensors file as :func:`replacing` does, from whichever device."""
    held = {k: v.detach().cpu().contiguous() for k, v in tensors.items()}
    with replacing(path, sum(v.nbytes for v in held.values())) as partial:
        save_file(held, partial, metadata)


def check_finite(x: Checked, what: str) -> Checked:
    """x itself, a tensor, an array or a number. Raises UserError if a value is not finite.

    ``what`` computed it, as "the decoder": everything that becomes a figure or a file is checked.
    """
    good = x.isfinite() if isinstance(x, torch.Tensor) else np.isfinite(x)
    if not good.all():
        raise UserError(f"{what} gave values that are not finite; its weights are damaged")
    return x


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
    except Exception:  # noqa: BLE001 - its reader fails in any way on what is no pickle
        raise UserError(
            f"{path}: not a file of weights alone, or damaged; give one of named tensors, as "
            ".safetensors or .pth"
        ) from None
    if not isinstance(state, dict) or not all(isinstance(v, torch.Tensor) for v in state.values()):
        raise UserError(f"{path}: not a state dict; save the network's named tensors alone")
    return state


def make_config(config_class: type, values: dict[str, Any], where: str) -> Any:
    """A flat config dataclass from a dict.

    Raises UserError for an unknown key (naming the nearest), a missing one, and a value that the
    dataclass refuses.
    """
    known = [field.name for field in dataclasses.fields(config_class)]
    for key in values:
        if key not in known:
            raise unknown_key(key, known, where)
    needed = [f.name for f in dataclasses.fields(config_class) if f.default is dataclasses.MISSING]
    if missing := [name for name in needed if name not in values]:
        raise UserError(f"{where}: lacks {', '.join(missing)}")
    try:
        return config_class(**values)
    except UserError as error:
        raise UserError(f"{where}: {error}") from None


def read_config(directory: Path) -> dict[str, Any]:
    """The values of a directory's config.json. Raises UserError if it is missing or damaged."""
    path = directory / "config.json"
    if not path.is_file():
        raise UserError(f"{directory}: no config.json there; give a directory saved by softvq")
    try:
        values = json.loads(path.read_text(encoding="utf-8"))
    except RecursionError:
        raise UserError(f"{path}: not a configuration: nested too deep") from None
    except (OSError, ValueError) as error:
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

    The config is held against the header of the weights before it takes memory. Raises UserError
    if a file is missing or damaged, a config key is unknown or refused, the directory holds another
    kind of model or another layout, any tensor is missing, extra or of another shape (all are
    listed), or a weight is not finite.
    """
    directory = Path(directory)
    values = read_config(directory)
    where = str(directory / "config.json")
    kind = values.pop("model", None)
    if kind is None:
        raise UserError(
            f"{directory}: not in the layout of softvq, whose config.json names a model; "
            "softvq.open_tokenizer and softvq.open_generator open other layouts too"
        )
    if kind != model_class.__name__:
        raise UserError(f"{directory}: holds a {kind}, not a {model_class.__name__}")
    config = make_config(config_class, values, where)
    weights = directory / "model.safetensors"
    held = tensor_shapes(weights)
    model = build(model_class, config, sum(v.numel() for v in held.values()), where)
    check_fit(model.state_dict(), held, str(directory))
    model.load_state_dict(load_tensors(weights))
    check_weights(model, str(directory))
    return model.eval()


def build(model_class: Callable[..., Model], config: Any, held: int, where: str) -> Model:
    """``model_class(config)`` for a file that holds ``held`` numbers.

    Raises UserError, before the memory is taken, if it would be several times as large.
    """
    try:
        with SizeLimit(4 * held + 10_000_000, where):
            return model_class(config)
    except UserError as error:
        raise error if where in str(error) else UserError(f"{where}: {error}") from None
    except (RuntimeError, ValueError, TypeError, OverflowError, MemoryError) as error:
        reason = (str(error) or type(error).__name__).splitlines()[0]
        raise UserError(f"{where}: no {model_class.__name__} has this shape ({reason})") from None


class SizeLimit(TorchFunctionMode):
    """Refuses new tensors, inside, as soon as they have more than ``limit`` numbers together."""

    MAKERS = (torch.empty, torch.zeros, torch.ones, torch.full, torch.rand, torch.randn)

    def __init__(self, limit: int, where: str):
        super().__init__()
        self.left, self.where = limit, where

    def __torch_function__(
        self,
        func: Any,
        types: Any,
        args: tuple[Any, ...] = (),
        kwargs: dict[str, Any] | None = None,
    ) -> Any:
        kwargs = kwargs or {}
        if func in self.MAKERS or func is torch.arange:
            size = kwargs.get("size", args[:1] if func is torch.full else args)
            if size and isinstance(size[0], tuple | list):
                size = size[0]
            self.left -= int(max(size) if func is torch.arange else math.prod(size))
            if self.left < 0:
                raise UserError(
                    f"{self.where}: weights do not fit the config, which is of a model several "
                    "times as large as the file beside it"
                )
        return func(*args, **kwargs)


DTYPES = {"F64": torch.float64, "F32": torch.float32, "F16": torch.float16, "BF16": torch.bfloat16}


def tensor_shapes(path: Path) -> dict[str, torch.Tensor]:
    """A safetensors file's tensors by its header alone, on the meta device. UserError."""
    try:
        with safe_open(path, "pt") as file:
            slices = {key: file.get_slice(key) for key in file.keys()}
            return {
                key: torch.empty(
                    part.get_shape(), dtype=DTYPES.get(part.get_dtype()), device="meta"
                )
                for key, part in slices.items()
            }
    except FileNotFoundError:
        raise UserError(f"{path}: no such file") from None
    except (SafetensorError, OSError) as error:
        raise UserError(f"{path}: not a readable safetensors file ({error})") from None


def check_weights(model: torch.nn.Module, where: str) -> None:
    """Raises UserError, naming the first, if a weight or buffer of a model is not finite."""
    for name, tensor in model.state_dict().items():
        if tensor.is_floating_point() and tensor.numel():
            low, high = tensor.aminmax()  # of any nan they are nan, and nothing is copied
            if not (low.isfinite() and high.isfinite()):
                raise UserError(
                    f"{where}: damaged: {name} holds values that are not finite; "
                    "take a sound copy, or train again"
                )


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
