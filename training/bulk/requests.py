"""Requests from a file: the bodies of a server's endpoints, each with an id."""

from __future__ import annotations

import hashlib
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from index.sequence.events import Task
from server.offline import OfflineReader
from training.bulk.entry import BulkError, Entry, check
from training.data.importing.bad_rows import BadRow, BadRowsError
from training.data.importing.tables import RowError, rows

ID = "id"
ROW_FIELDS = (ID, "task")


class Requests:
    """A `Source` of requests.

    entries: each with an id of its own. sha256: of their file. notes: what was left out.
    """

    column = ID

    def __init__(self, entries: Sequence[Entry], sha256: str, notes: Sequence[str]) -> None:
        self._entries = entries
        self.sha256 = sha256
        self.notes = list(notes)

    def __len__(self) -> int:
        return len(self._entries)

    def entries(self, start: int, stop: int) -> list[Entry]:
        """Return some requests, in their order."""
        return list(self._entries[start:stop])

    @classmethod
    def read(
        cls,
        path: Path,
        task: Task | None,
        fields: Mapping[str, Any],
        reader: OfflineReader,
        *,
        skip_bad: bool = False,
    ) -> Requests:
        """Read JSON Lines or Parquet. A row holds `id`, the fields of a body, and `task` as in `/v1/batch`.

        task: of rows that do not name theirs. fields: of every request; a row's own win over them.
        Each is checked as a server would. Raises `DataError`, `BadRowsError` unless bad rows are to be skipped, and
        `BulkError` if no request is left.
        """
        entries: list[Entry] = []
        bad: list[BadRow] = []
        seen: set[str] = set()
        for number, row in rows(path, (ID,)):
            try:
                entry = _entry(row, task, fields)
                if entry.key in seen:
                    raise RowError(f"id {entry.key!r} is already that of another row; ids must be unique")
                if (wrong := check(entry, reader)) is not None:
                    raise RowError(wrong)
            except RowError as error:
                bad.append(BadRow(path, number, str(error)))
                continue
            seen.add(entry.key)
            entries.append(entry)
        if bad and not skip_bad:
            raise BadRowsError(bad)
        if not entries:
            raise BulkError(f"{path} holds no request that can be ranked")
        with path.open("rb") as file:
            sha256 = hashlib.file_digest(file, "sha256").hexdigest()
        return cls(entries, sha256, [f"{len(bad):,} bad rows of {path} were skipped"] if bad else [])


def _entry(row: object, task: Task | None, fields: Mapping[str, Any]) -> Entry:
    """Return the entry of a row. Raises `RowError`."""
    if isinstance(row, RowError):
        raise row
    if not isinstance(row, dict):
        raise RowError("not a JSON object")
    key, named = row.get(ID), row.get("task")
    if not isinstance(key, str | int) or isinstance(key, bool) or key == "":
        raise RowError(f"{ID!r} must be a non-empty string or an integer")
    try:
        chosen = Task(named) if named is not None else task
    except ValueError:
        raise RowError("'task' must be search or recommendation") from None
    if chosen is None:
        raise RowError("'task' is missing; name it in the row, or give --task for all of them")
    # A column of Parquet has a null in every row that does not name the field.
    own = {name: value for name, value in row.items() if name not in ROW_FIELDS and value is not None}
    return Entry(str(key), chosen, {**fields, **own})
