"""Where results go: no command replaces a file that it did not write.

A folder of results keeps a record, ``softvq.json``: which command wrote it, with which settings,
and the names of its files. The same command with the same settings may write those files again, and
no others; anything else needs a new or empty folder. A folder with a record of its own (tokens have
their ``index.json``, a training its ``recipe.yaml``) is told by that, see :func:`check_folder`.
"""

import contextlib
import json
import os
from collections.abc import Callable, Iterator, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path, PurePosixPath
from typing import Any, Self

from softvq.errors import UserError
from softvq.io import locked, sweep, write_atomically

RECORD = "softvq.json"
LOCK = ".lock"
TEMPORARY = ".photos-"  # begins the name of a folder that goes with the run that made it


@dataclass
class Record:
    """Who wrote a folder: the command, what decides its results (JSON), its files' names."""

    command: str
    settings: dict[str, Any]
    files: list[str]

    @classmethod
    def read(cls, folder: Path) -> Self | None:
        """A folder's record; None if it has none that is ours."""
        try:
            values = json.loads((folder / RECORD).read_text(encoding="utf-8"))
            record = cls(values["command"], values["settings"], values["files"])
        except (OSError, ValueError, KeyError, TypeError, RecursionError):
            return None
        named = isinstance(record.files, list) and all(isinstance(x, str) for x in record.files)
        return record if named and isinstance(record.settings, dict) else None


def check_folder(folder: str | Path, record: str = RECORD) -> None:
    """Raises UserError unless a folder for results is new, empty or has our ``record`` in it.

    Hidden files do not count: file managers leave them everywhere.
    """
    folder = Path(folder)
    if folder.exists() and not folder.is_dir():
        raise UserError(f"{folder}: is a file; give a folder")
    if not folder.is_dir() or (folder / record).is_file():
        return
    if theirs := sorted(name for name in os.listdir(folder) if not name.startswith(".")):
        raise UserError(
            f"{folder}: holds files that softvq did not write ({theirs[0]}"
            f"{' and others' if len(theirs) > 1 else ''}); choose another folder, or an empty one"
        )


def check_file(path: str | Path, ours: Callable[[Path], bool], overwrite: bool = False) -> None:
    """Raises UserError if a file for results is there, unless it is ours and ``overwrite``."""
    path = Path(path)
    if path.is_dir():
        raise UserError(f"{path}: is a folder; give the name of a file")
    if not (path.exists() or path.is_symlink()):
        return
    if not ours(path):
        raise UserError(f"{path}: is there, and softvq did not write it; give another file")
    if not overwrite:
        raise UserError(f"{path}: is there already; give another file, or --overwrite")


def refuse_overlap(data: str | Path, out: str | Path) -> None:
    """Raises UserError if results would lie among the photos, or photos among the results."""
    if str(data) == "builtin":
        return
    photos, results = Path(data).expanduser().resolve(), Path(out).expanduser().resolve()
    if results == photos or photos in results.parents:
        raise UserError(
            f"{out}: lies in the photos' folder {data}, where the next run would take it for "
            "photos; give a folder outside of it"
        )
    if results in photos.parents:
        raise UserError(f"{out}: holds the photos {data}; give a folder of its own")


class Output:
    """A folder held alone for one run of a command; see :func:`claimed`."""

    def __init__(self, folder: Path, command: str, settings: dict[str, Any], old: Record | None):
        self.folder, self.old = folder, old
        self.record = Record(command, settings, [])

    def expect(self, files: Sequence[str], later: Sequence[str] = ()) -> list[Path]:
        """Where to write ``files``, relative names: all that the folder holds in the end.

        Long work names what it writes at its end as ``later``, and expects all once it is there: a
        file that a user puts in the way meanwhile is not ours, for all that we meant to write it.
        What the last run wrote and this one does not is deleted. Raises UserError if anything in
        the way is not ours.
        """
        ours = set(self.record.files) | set(self.old.files if self.old else ())
        for name in (*files, *later):
            if not _inside(self.folder, name):
                raise UserError(f"{self.folder / name}: not inside of {self.folder}; rename it")
            if name not in ours and os.path.lexists(self.folder / name):
                raise UserError(
                    f"{self.folder / name}: is there, and this command did not write it; choose "
                    "another folder, or an empty one"
                )
        for name in ours - {*files, *later}:
            if _inside(self.folder, name) and (self.folder / name).is_file():
                (self.folder / name).unlink()
        self.record.files = [*files, *(name for name in later if name in ours)]
        write_atomically(self.folder / RECORD, json.dumps(asdict(self.record), indent=1) + "\n")
        return [self.folder / name for name in files]


@contextlib.contextmanager
def claimed(
    folder: str | Path, command: str, settings: dict[str, Any], overwrite: bool = False
) -> Iterator[Output]:
    """Hold a folder, made if it is new, for a command's results; ``expect`` says its files.

    >>> with claimed("out", "decode", {"tokenizer": fingerprint}) as out:
    ...     for path, picture in zip(out.expect(names), pictures): ...

    ``settings``, JSON: all that decides what the files hold. ``overwrite``: results of other
    settings of the same command give way. What killed runs left is swept. A run that fails before
    its first file leaves the folder as it was.

    Raises UserError if the folder holds anything else, and if another run is writing there.
    """
    folder = Path(folder)
    check_folder(folder)
    new = not folder.exists()
    try:
        busy = f"{folder}: another run is writing there; wait for it, or stop it"
        with locked(folder / LOCK, busy):
            old = Record.read(folder)
            if old is None:
                check_folder(folder, "")
            else:
                _compare(folder, old, command, json.loads(json.dumps(settings)), overwrite)
            written = [name for name in (old.files if old else ()) if _inside(folder, name)]
            for part in {folder} | {(folder / name).parent for name in written}:
                sweep(part)
            out = Output(folder, command, settings, old)
            try:
                yield out
            except BaseException:
                if old is None and not _others(folder):
                    (folder / RECORD).unlink(missing_ok=True)
                raise
    finally:
        if new and folder.is_dir() and not os.listdir(folder):
            folder.rmdir()


def _compare(
    folder: Path, old: Record, command: str, settings: dict[str, Any], overwrite: bool
) -> None:
    if old.command != command:
        raise UserError(
            f"{folder}: holds what `softvq {old.command}` wrote; give `softvq {command}` a folder "
            "of its own"
        )
    keys = sorted(settings | old.settings)
    changed = [key for key in keys if settings.get(key) != old.settings.get(key)]
    if changed and not overwrite:
        raise UserError(
            f"{folder}: holds the results of other settings (another {', '.join(changed)}); give "
            "another folder, or --overwrite to replace them"
        )


def _others(folder: Path) -> list[str]:
    """What lies in a folder beside its record. Hidden files do not count, as everywhere here."""
    return [name for name in os.listdir(folder) if not name.startswith(".") and name != RECORD]


def _inside(folder: Path, name: str) -> bool:
    """Whether a file of this name lies in the folder, links on the way there followed."""
    path = PurePosixPath(name)
    if path.is_absolute() or ".." in path.parts or not path.parts:
        return False
    return (folder / path.parent).resolve().is_relative_to(folder.resolve())
