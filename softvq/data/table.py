"""A CSV beside the photos: which rows belong to which photo."""

import csv
import unicodedata
from collections import defaultdict
from pathlib import Path

from softvq.errors import UserError


def read_rows(
    table: Path, names: list[str], splits: bool, classes: bool
) -> tuple[list[str], list[list[dict[str, str]]]]:
    """Read a CSV (UTF-8): its columns, and for every photo the rows that belong to it.

    ``names`` are those of a ``Store``; ``splits`` and ``classes`` say whether they begin
    with a split and a class. The rows are told apart by the column ``path``, or else by ``name``
    (a file name or its stem) together with ``split`` and ``class``, where the table and the photos
    have these. A row may belong to several photos of one name.

    Raises UserError if the file cannot be read, has neither column, or fits no photo.
    """
    try:
        with open(table, newline="", encoding="utf-8-sig") as file:
            reader = csv.DictReader(file)
            columns = list(reader.fieldnames or [])
            rows = [{c: _plain(row[c] or "") for c in columns} for row in reader]
    except OSError as error:
        raise UserError(f"{table}: cannot be read ({error.strerror})") from None
    except UnicodeDecodeError:
        raise UserError(f"{table}: not UTF-8; save it as 'CSV UTF-8'") from None
    except csv.Error as error:
        raise UserError(f"{table}: not a CSV file ({error})") from None

    if "path" in columns:
        keys = ["path"]
    elif "name" in columns:
        here = {"split": splits, "class": classes, "name": True}
        keys = [c for c in here if here[c] and c in columns]
    else:
        raise UserError(f"{table}: has no column 'path' or 'name'; add one that names the photos")

    rows_of: dict[tuple[str, ...], list[dict[str, str]]] = defaultdict(list)
    for row in rows:
        row.update({c: row[c].replace("\\", "/").removeprefix("./") for c in keys})
        rows_of[tuple(row[c] for c in keys)].append(row)

    def find(name: str) -> list[dict[str, str]]:
        parts = name.split("/")
        facts = {"path": name, "name": parts[-1], "split": parts[0], "class": parts[int(splits)]}
        *rest, last = (facts[c] for c in keys)
        stem = last.rpartition(".")[0]
        return [row for form in (last, stem) for row in rows_of.get((*rest, form), [])]

    matched = [find(_plain(name)) for name in names]
    if not any(matched):
        raise UserError(f"{table}: no row fits a photo such as {names[0]} (by {', '.join(keys)})")
    return columns, matched


def _plain(text: str) -> str:
    """Stripped, in composed characters: some systems store accents and voicing marks apart."""
    return unicodedata.normalize("NFC", text.strip())
