"""The query log: what people chose for the very same query in the training data.

Queries are the same if their words are, in the same order (`index/words.py`). Only queries that several people typed
are kept, and only as hashes: the files hold no text that somebody typed.
"""

from __future__ import annotations

import json
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from index.arrays import read_record, read_vector
from index.pool.keyed_rows import KeyedRows, distinct, firsts, hash_of
from index.words import words

FORMAT = 1
MOST_PEOPLE = 10**9
PEOPLE = 2
_CHOICE = np.dtype([("query", np.uint64), ("row", np.int32), ("user", np.int64)])


def normal_form(query: str) -> str:
    """Return the words of a query with spaces between them; empty if it has none."""
    return " ".join(words(query))


@dataclass(frozen=True, eq=False)
class QueryLog:
    """Chosen rows by query.

    choices: rows of each query, the most chosen first, then the lower row.
    counts: int32, for each of these rows the number of different people who chose it for the query.
    people: the least number of different people who typed a kept query.
    """

    choices: KeyedRows
    counts: NDArray[np.int32]
    people: int

    def __len__(self) -> int:
        return len(self.choices.hashes)

    @property
    def nbytes(self) -> int:
        """Bytes of the arrays."""
        return self.choices.nbytes + self.counts.nbytes

    @classmethod
    def build(cls, choices: Iterable[tuple[str, str, int]], people: int = PEOPLE) -> QueryLog:
        """Build the log from triples (user, query, catalogue row), in any order.

        people: leave out queries that fewer different people typed. Queries without words are left out as well.
        Raises `ValueError` if `people` is less than 1.
        """
        if people < 1:
            raise ValueError(f"a query needs at least one person, not {people}")
        users: dict[str, int] = {}
        hashes: dict[str, int | None] = {}

        def hashed(query: str) -> int | None:
            if query not in hashes:
                form = normal_form(query)
                hashes[query] = hash_of(form) if form else None
            return hashes[query]

        found = np.fromiter(
            (
                (key, row, users.setdefault(user, len(users)))
                for user, query, row in choices
                if (key := hashed(query)) is not None
            ),
            _CHOICE,
        )
        query, row, user = distinct(found["query"], found["row"], found["user"])
        queries, typists = np.unique(distinct(query, user)[0], return_counts=True)
        kept = np.isin(query, queries[typists >= people])
        query, row = query[kept], row[kept]  # equal ones are side by side, one for each person
        first = firsts(query, row)
        counts = np.diff(first, append=len(query)).astype(np.int32)
        query, row = query[first], row[first]
        order = np.lexsort([row, -counts, query])
        return cls(KeyedRows.of(query[order], row[order]), counts[order], people)

    def chosen(self, query: str) -> tuple[NDArray[np.int32], NDArray[np.int32]]:
        """Return the rows that people chose for a query, and how many different people; empty for an unknown query."""
        place = self.choices.range_of(normal_form(query))
        return self.choices.rows[place], self.counts[place]

    def save(self, folder: Path) -> None:
        """Write `query_log.json` and the arrays."""
        folder.mkdir(parents=True, exist_ok=True)
        self.choices.save(folder, "query")
        np.save(folder / "query_counts.npy", self.counts)
        record = {"format": FORMAT, "people": self.people}
        (folder / "query_log.json").write_text(json.dumps(record) + "\n", "utf-8")

    @classmethod
    def open(cls, folder: Path, items: int) -> QueryLog:
        """Read what `save` wrote. items: number of rows of the catalogue.

        Raises `ValueError` with the name of the file that is missing or damaged, or does not fit the others.
        """
        record = read_record(folder / "query_log.json")
        record.whole("format", FORMAT, FORMAT)
        choices = KeyedRows.open(folder, "query", items)
        counts = read_vector(folder / "query_counts.npy", np.int32, len(choices.rows))
        if len(counts) and counts.min() < 1:
            raise ValueError(f"{folder / 'query_counts.npy'} is damaged: its numbers must be positive")
        return cls(choices, counts, record.whole("people", 1, MOST_PEOPLE))
