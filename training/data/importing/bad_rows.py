"""Rows of a file that cannot be used: told by file, line and reason, and summed up where many have the same fault."""

from __future__ import annotations

import re
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path

from training.data.importing.files import Kind, kind_by_name
from training.data.schema import DataError

SHOWN = 20  # rows of a kind
_OWN = re.compile(r"'[^']*'|\"[^\"]*\"|\d+")  # what is a row's own in a reason


@dataclass(frozen=True, slots=True)
class BadRow:
    """A row that cannot be used. number: of a line, a row of Parquet, or an event of a store of people, from 1."""

    file: Path
    number: int
    reason: str

    def __str__(self) -> str:
        return f"{self.file} {place(self.file, self.number)}: {self.reason}"

    @property
    def kind(self) -> tuple[Path, str]:
        """File and reason, without what is the row's own."""
        return self.file, _OWN.sub("…", self.reason)


class RowsError(DataError):
    """Rows are bad; the message has a line for each of them, at most `SHOWN` of a kind."""

    one_line = False


class BadRowsError(RowsError):
    """There are bad rows, and they may not be skipped. rows: all of them."""

    def __init__(self, rows: list[BadRow]) -> None:
        self.rows = rows
        super().__init__(
            f"{summed_up(rows)}\n{len(rows):,} bad row(s), nothing was written; correct them, or keep the rest "
            "with --skip-bad"
        )


def summed_up(rows: Sequence[BadRow]) -> str:
    """Return a line for each row in their order, at most `SHOWN` of a kind, and how many more there are of each."""
    seen: dict[tuple[Path, str], int] = {}
    lines = []
    for row in rows:
        kind = row.kind
        seen[kind] = seen.get(kind, 0) + 1
        if seen[kind] <= SHOWN:
            lines.append(str(row))
    lines += [
        f"{file}: {count - SHOWN:,} more rows like these: {reason}"
        for (file, reason), count in seen.items()
        if count > SHOWN
    ]
    return "\n".join(lines)


def all_of_them(rows: Iterable[BadRow]) -> str:
    """Return a line for every row."""
    return "".join(f"{row}\n" for row in rows)


def place(path: Path, number: int) -> str:
    """Return how a row is named. path: of its file, or the name of a store of people."""
    words = {Kind.PARQUET: "row", None: "event"}
    return f"{words.get(kind_by_name(path), 'line')} {number}"
