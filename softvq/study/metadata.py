"""A CSV beside the photos: which row belongs to which photo."""

from dataclasses import dataclass
from pathlib import Path

from softvq.data.table import read_rows
from softvq.errors import UserError, unknown_key


@dataclass(frozen=True)
class Metadata:
    """The columns of a table, and for every photo its row, {} if there is none."""

    table: Path
    columns: list[str]
    rows: list[dict[str, str]]

    def column(self, name: str) -> list[str]:
        """The value of every photo, '' without a row. Raises UserError for an unknown column."""
        if name not in self.columns:
            raise unknown_key(name, self.columns, str(self.table))
        return [row.get(name, "") for row in self.rows]


def read_metadata(table: Path, names: list[str], splits: bool, classes: bool) -> Metadata:
    """Read a table with one row for each photo, as :func:`read_rows` finds them.

    Raises UserError as it does, and for two rows for one photo that differ.
    """
    columns, rows = read_rows(table, names, splits, classes)
    for some in rows:
        if any(row != some[0] for row in some):
            raise UserError(
                f"{table}: two different rows for {some[0].get('path') or some[0]['name']}; give "
                "one row per photo, told apart by path, or by split, class and name"
            )
    return Metadata(table, columns, [some[0] if some else {} for some in rows])
