"""Queries without people, such as those whose answers a cache holds: each is searched with an empty history."""

from __future__ import annotations

import hashlib
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from index.sequence.events import Task
from server.offline import OfflineReader
from training.bulk.entry import BulkError, Entry, check
from training.data.importing.bad_rows import BadRow, BadRowsError
from training.data.importing.files import kind_by_name
from training.data.importing.tables import RowError, rows
from training.inputs import read_text


class Queries:
    """A `Source` of queries.

    queries: each once. fields: of every request, besides the query. notes: what was left out.
    """

    column = "query"

    def __init__(self, queries: Sequence[str], fields: Mapping[str, Any], notes: Sequence[str]) -> None:
        self._queries = queries
        self._fields = dict(fields)
        self.sha256 = hashlib.sha256("\x1f".join(queries).encode()).hexdigest()
        self.notes = list(notes)

    def __len__(self) -> int:
        return len(self._queries)

    def entries(self, start: int, stop: int) -> list[Entry]:
        """Return the searches for some queries, in their order."""
        return [self._entry(query) for query in self._queries[start:stop]]

    def _entry(self, query: str) -> Entry:
        return Entry(query, Task.SEARCH, {**self._fields, "query": query})

    @classmethod
    def read(
        cls, path: Path, fields: Mapping[str, Any], reader: OfflineReader, *, skip_bad: bool = False
    ) -> Queries:
        """Read a text file of one query a line, or the field `query` of JSON Lines, CSV or Parquet.

        A query that comes again is searched once. Each is checked as a server would. Raises `DataError`,
        `BadRowsError` unless bad rows are to be skipped, and `BulkError` if no query is left.
        """
        made = cls([], fields, [])
        kept: dict[str, None] = {}
        bad: list[BadRow] = []
        twice = 0
        for number, query in _rows(path):
            if isinstance(query, str) and query in kept:
                twice += 1
            elif isinstance(query, RowError):
                bad.append(BadRow(path, number, str(query)))
            elif (wrong := check(made._entry(query), reader)) is not None:
                bad.append(BadRow(path, number, wrong))
            else:
                kept[query] = None
        if bad and not skip_bad:
            raise BadRowsError(bad)
        if not kept:
            raise BulkError(f"{path} holds no query that can be searched")
        notes = [f"{len(bad):,} bad rows of {path} were skipped"] if bad else []
        notes += [f"{twice:,} queries of {path} come again and were searched once"] if twice else []
        return cls(list(kept), fields, notes)


def _rows(path: Path) -> list[tuple[int, str | RowError]]:
    """Return the queries with the numbers of their rows; an error where there is none."""
    if kind_by_name(path) is None:
        text = read_text(path, "queries, one a line", "text", "nothing (it is empty)")
        return [
            (number, line.strip()) for number, line in enumerate(text.split("\n"), start=1) if line.strip()
        ]
    return [(number, _query(row)) for number, row in rows(path, ("query",))]


def _query(row: object) -> str | RowError:
    if isinstance(row, RowError):
        return row
    query = row.get("query") if isinstance(row, dict) else None
    return query if isinstance(query, str) else RowError("'query' must be a text")
