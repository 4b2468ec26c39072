"""The user's own measure of a reconstruction: a Python function, or any program."""

import importlib
import importlib.util
import shlex
import shutil
import signal
import subprocess
import tempfile
import traceback
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image

from softvq import images
from softvq.errors import UserError

# (originals, rebuilt: uint8 [N, H, W, 3], names) -> one number, or float64 [N], one for each photo
Metric = Callable[[np.ndarray, np.ndarray, list[str]], float | np.ndarray]

PLACES = ("{originals}", "{rebuilt}")
FORMS = "give file.py:function, package.module:function or 'command: program {originals} {rebuilt}'"


def open_metric(text: str) -> Metric:
    """The metric that ``text`` names; NaN from it means that it cannot be measured.

    ``file.py:function`` or ``package.module:function`` is called with the originals and their
    reconstructions, uint8 [N, H, W, 3], and the photos' names, and returns a number or N numbers.

    ``command: program {originals} {rebuilt}`` is run, without a shell, on two folders of PNG files
    that are named as the photos; the last line that it prints is the number.

    Raises UserError if there is no such file, module, function or program, and when the metric is
    called, if it fails, ends the program or gives anything else than numbers.
    """
    if text.startswith("command:"):
        return _command(text.removeprefix("command:"))
    return _function(text)


def _function(text: str) -> Metric:
    where, _, name = text.rpartition(":")
    if not where or not name:
        raise UserError(f"metric '{text}' is not understood; {FORMS}")
    try:
        module = _module(where)
    except (Exception, SystemExit) as error:  # noqa: BLE001, it is the user's code
        raise UserError(f"metric {text}: {_reason(error, where)}") from None
    function = getattr(module, name, None)
    if not callable(function):
        known = [key for key, value in vars(module).items() if callable(value) and key[0] != "_"]
        raise UserError(
            f"metric {text}: no function '{name}' there; there are: {', '.join(known) or 'none'}"
        )

    def metric(originals: np.ndarray, rebuilt: np.ndarray, names: list[str]) -> float | np.ndarray:
        try:
            value = np.asarray(function(originals, rebuilt, names), np.float64)
        except (Exception, SystemExit) as error:  # noqa: BLE001
            raise UserError(f"metric {text}: {_reason(error, where)}") from None
        if value.shape not in ((), (len(names),)):
            raise UserError(
                f"metric {text}: returned an array of shape {list(value.shape)}; return one number "
                f"or {len(names)}, one for each photo"
            )
        return value if value.shape else float(value)

    return metric


def _module(where: str) -> Any:
    if not where.endswith(".py"):
        return importlib.import_module(where)
    path = Path(where).expanduser()
    if not path.is_file():
        raise UserError(f"no such file; {FORMS}")
    spec = importlib.util.spec_from_file_location(path.stem, path)
    assert spec and spec.loader
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def _reason(error: BaseException, where: str) -> str:
    """The error in one line, with the last line of the user's file that it passed."""
    if isinstance(error, UserError):
        return str(error)
    lines = [
        frame.lineno
        for frame in traceback.extract_tb(error.__traceback__)
        if Path(frame.filename).name == Path(where).name
    ]
    at = f" (line {lines[-1]})" if lines else ""
    if isinstance(error, SystemExit):
        return f"it ended the program with exit({error.code!r}){at}; return a number instead"
    return " ".join(f"{type(error).__name__}: {error}{at}".split())


def _command(text: str) -> Metric:
    try:
        words = shlex.split(text)
    except ValueError as error:
        raise UserError(f"metric command '{text.strip()}': {error}; mend the quotes") from None
    for place in PLACES:
        if not any(place in word for word in words):
            raise UserError(f"metric command '{text.strip()}': lacks {place}; {FORMS}")
    if shutil.which(words[0]) is None:
        raise UserError(f"metric command: {words[0]} is not a program that can be run")

    def metric(originals: np.ndarray, rebuilt: np.ndarray, names: list[str]) -> float:
        with tempfile.TemporaryDirectory(prefix="softvq-metric-") as folder:
            filled = words
            for place, pictures in zip(PLACES, (originals, rebuilt), strict=True):
                below = str(Path(folder, place[1:-1]))
                filled = [word.replace(place, below) for word in filled]
                paths = images.png_paths(names, below)
                for picture, path in zip(pictures, paths, strict=True):
                    images.save_png(Image.fromarray(picture), path)
            return _run(filled)

    return metric


def _run(words: list[str]) -> float:
    name = f"metric command {words[0]}"
    try:
        ran = subprocess.run(
            words, stdin=subprocess.DEVNULL, capture_output=True, text=True, errors="replace"
        )
    except OSError as error:
        raise UserError(f"{name}: cannot be run ({error.strerror})") from None
    if ran.returncode:
        code = ran.returncode
        end = f"exit status {code}" if code > 0 else f"killed by {signal.Signals(-code).name}"
        raise UserError(f"{name}: {end}; its last words: {_last(ran.stderr) or 'none'}")
    last = _last(ran.stdout)
    try:
        return float(last)
    except ValueError:
        raise UserError(
            f"{name}: the last line it printed is no number: '{last}'; print the number there"
        ) from None


def _last(output: str) -> str:
    lines = output.strip().splitlines()
    return lines[-1].strip() if lines else ""
