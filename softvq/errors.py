"""The exception and the warning that reach a user as a single line, without a traceback."""

import difflib
import os
from pathlib import Path


class UserError(ValueError):
    """Something the user can mend. The message names the cause and the mend.

    The command line prints it as one line and exits with code 2: a line it is whatever the message
    quotes, a file's name with a line break in it too.
    """

    def __init__(self, message: str):
        super().__init__(" ".join(message.splitlines()))


class SoftVQWarning(UserWarning):
    """A result to be read with care. The command line prints it as one line and goes on."""


def first_started() -> bool:
    """Whether this process is the one of those that torchrun started which speaks to the user."""
    return os.environ.get("RANK", "0") == "0"


def check_ranges(config: object, section: str, **ranges: tuple[float, float]) -> None:
    """Raises UserError for a field outside its range, ends included; NaN is outside of every one.

    ``section``: where users find the fields, as ``train``; "" for the top of a recipe.
    """
    for name, (low, high) in ranges.items():
        if not low <= (value := getattr(config, name)) <= high:
            key = f"{section}.{name}" if section else name
            raise UserError(f"{key} must be in {low:,} .. {high:,}, got {value:,}")


def check_there(**paths: str | Path | None) -> None:
    """Raises UserError for the first option whose path is not there; None passes.

    For what is read only after hours of decoding photos.
    """
    for name, path in paths.items():
        if path is not None and not Path(path).expanduser().exists():
            raise UserError(f"{path}: no such file or folder; --{name} takes one that is there")


def unknown_key(key: str, known: list[str], where: str) -> UserError:
    """The error for a key nobody knows, naming the nearest known one."""
    near = difflib.get_close_matches(key, known, n=1, cutoff=0.5)
    hint = f"did you mean '{near[0]}'?" if near else f"known keys: {', '.join(sorted(known))}"
    shown = repr(key) if len(key) <= 60 else f"{key[:60]!r}..."
    return UserError(f"{where}: unknown key {shown}; {hint}")
