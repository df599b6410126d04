"""Histories of people as columns: 24 bytes an event, which may lie in a file that is mapped into memory.

A history becomes Python objects only when somebody looks at it.
"""

from __future__ import annotations

from abc import abstractmethod
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass, replace
from itertools import pairwise
from typing import Any, TypeVar, overload

import numpy as np
import polars as pl
import pyarrow as pa
from numpy.typing import NDArray

from index.sequence.events import Event, Task

PIECE = 1_000_000  # events that are turned into text at a time
NONE = -1  # in `queries` and `simulated`


@dataclass(frozen=True, slots=True)
class UserHistory:
    """The history of one user.

    events: oldest first.
    simulated_queries: the simulated query of each event, or None.
    timestamps: the time stamp of each event.
    Raises `ValueError` if these differ in number.
    """

    user_id: str
    events: tuple[Event, ...]
    simulated_queries: tuple[str | None, ...]
    timestamps: tuple[int | float, ...]

    def __post_init__(self) -> None:
        if not len(self.events) == len(self.simulated_queries) == len(self.timestamps):
            raise ValueError(
                f"user {self.user_id!r}: events, simulated queries and time stamps differ in number"
            )

    def search_query(self, position: int) -> str | None:
        """Return the query for testing an event as search: its own, otherwise the simulated one, otherwise None."""
        return self.events[position].query or self.simulated_queries[position]


Element = TypeVar("Element")


class OnDemand(Sequence[Element]):
    """A sequence whose elements are made when they are looked at."""

    @abstractmethod
    def at(self, k: int) -> Element:
        """Make the k-th element, from 0."""

    @overload
    def __getitem__(self, index: int) -> Element: ...
    @overload
    def __getitem__(self, index: slice) -> list[Element]: ...
    def __getitem__(self, index: int | slice) -> Element | list[Element]:
        places = range(len(self))[index]
        return self.at(places) if isinstance(places, int) else [self.at(k) for k in places]


@dataclass(frozen=True, eq=False)
class Histories(OnDemand[UserHistory]):
    """The histories of all people, one after another.

    user_ids: text [people].
    offsets: int64 [people + 1]; the events of person k are `offsets[k]` to `offsets[k + 1]`, oldest first.
    items: int32 [events], catalogue rows.
    queries: int32 [events], places in `texts` of the queries of searches; -1 for a recommendation.
    simulated: int32 [events], places in `texts` of the simulated queries; -1 where there is none.
    timestamps: int64 or float64 [events].
    texts: every query once.
    """

    user_ids: pa.LargeStringArray
    offsets: NDArray[np.int64]
    items: NDArray[np.int32]
    queries: NDArray[np.int32]
    simulated: NDArray[np.int32]
    timestamps: NDArray[Any]
    texts: pa.LargeStringArray

    @classmethod
    def of(cls, users: Iterable[UserHistory]) -> Histories:
        """Turn objects into columns."""
        users = list(users)
        places: dict[str, int] = {}

        def place(query: str | None) -> int:
            return NONE if query is None else places.setdefault(query, len(places))

        events = [event for user in users for event in user.events]
        asked = [place(event.query if event.behaviour is Task.SEARCH else None) for event in events]
        simulated = [place(query) for user in users for query in user.simulated_queries]
        stamps = [stamp for user in users for stamp in user.timestamps]
        whole = all(isinstance(stamp, int) for stamp in stamps)
        return cls(
            pa.array([user.user_id for user in users], pa.large_string()),
            np.cumsum([0, *(len(user.events) for user in users)], dtype=np.int64),
            np.array([event.item for event in events], np.int32),
            np.array(asked, np.int32),
            np.array(simulated, np.int32),
            np.array(stamps, np.int64 if whole else np.float64),
            pa.array(list(places), pa.large_string()),
        )

    @classmethod
    def encoded(cls, log: pl.DataFrame, users: pl.Series, texts: pl.Series) -> Histories:
        """Sort the events of a log by person and time; equal times keep their order.

        log: int32 columns `user` (place in `users`), `item`, `query`, `simulated` (as here), and `timestamp`. They are
            taken out of it one by one, so that no log is in memory twice.
        users, texts: every user id and every query once.
        """
        order = log.select(pl.arg_sort_by("user", "timestamp", maintain_order=True)).to_series()
        lengths = np.bincount(log["user"].to_numpy(), minlength=len(users))

        def sorted_column(name: str) -> NDArray[Any]:
            return log.drop_in_place(name).gather(order).to_numpy()

        return cls(
            user_ids=users.to_arrow(),
            offsets=np.concatenate([[0], np.cumsum(lengths)]).astype(np.int64),
            items=sorted_column("item"),
            queries=sorted_column("query"),
            simulated=sorted_column("simulated"),
            timestamps=sorted_column("timestamp"),
            texts=texts.to_arrow(),
        )

    @property
    def lengths(self) -> NDArray[np.int64]:
        """Return the number of events of each person, int64 [people]."""
        return np.diff(self.offsets)

    @property
    def testable(self) -> NDArray[np.bool_]:
        """Whether each event has a query to test it as search: its own or a simulated one; bool [events]."""
        has_query: NDArray[np.bool_] = (self.queries != NONE) | (self.simulated != NONE)
        return has_query

    def __len__(self) -> int:
        return len(self.user_ids)

    def at(self, k: int) -> UserHistory:
        """Return the history of a person. k: place in `user_ids`."""
        begin, end = self.offsets[k : k + 2].tolist()
        simulated = (self._text(place) for place in self.simulated[begin:end].tolist())
        stamps = self.timestamps[begin:end].tolist()
        return UserHistory(self.user_id(k), self.events(k), tuple(simulated), tuple(stamps))

    def __eq__(self, other: object) -> bool:
        if not isinstance(other, Histories):
            return NotImplemented
        return len(self) == len(other) and all(a == b for a, b in zip(self, other, strict=True))

    __hash__ = None  # type: ignore[assignment]

    def user_id(self, person: int) -> str:
        """Return the id of a person."""
        found: str = self.user_ids[person].as_py()
        return found

    def events(self, person: int, end: int | None = None) -> tuple[Event, ...]:
        """Return the events of a person, oldest first. end: position before which they end; negative from the end."""
        begin, stop = self.offsets[person : person + 2].tolist()
        part = slice(begin, begin + len(range(stop - begin)[:end]))
        return tuple(
            Event(item) if query == NONE else Event(item, Task.SEARCH, self._text(query))
            for item, query in zip(self.items[part].tolist(), self.queries[part].tolist(), strict=True)
        )

    def search_query(self, person: int, position: int) -> str | None:
        """Return the query for testing an event as search, as `UserHistory.search_query`."""
        event = int(self.offsets[person]) + position
        own = int(self.queries[event])
        return self._text(own if own != NONE else int(self.simulated[event]))

    def _text(self, place: int) -> str | None:
        found: str | None = None if place == NONE else self.texts[place].as_py()
        return found

    def on(self, rows: NDArray[np.int32]) -> Histories:
        """Return the same histories with other catalogue rows. rows: int32, the new row of each row."""
        return replace(self, items=rows[self.items])

    def repeated(self) -> NDArray[np.int64]:
        """Return the events that repeat an earlier one of the person: the same time, item and queries."""
        again = self.timestamps[1:] == self.timestamps[:-1]
        again[self.offsets[1:-1] - 1] = False  # the next event is another person's
        near = np.flatnonzero(np.append(again, False) | np.append(False, again))  # events of one moment
        columns = {
            "item": self.items,
            "query": self.queries,
            "simulated": self.simulated,
            "time": self.timestamps,
        }
        moment = pl.DataFrame(
            {"person": np.searchsorted(self.offsets, near, side="right")}
            | {name: column[near] for name, column in columns.items()}
        )
        first: NDArray[np.bool_] = (
            moment.select(pl.struct(pl.all()).is_first_distinct()).to_series().to_numpy()
        )
        repeats: NDArray[np.int64] = near[~first]
        return repeats

    def without(self, events: NDArray[np.int64]) -> Histories:
        """Return the histories without some events. events: int64, places in the columns."""
        kept = np.ones(len(self.items), bool)
        kept[events] = False
        ends = np.concatenate([[0], np.cumsum(kept)])
        columns = {
            name: getattr(self, name)[kept] for name in ("items", "queries", "simulated", "timestamps")
        }
        return replace(self, offsets=ends[self.offsets], **columns)

    def pieces(self) -> Iterator[tuple[NDArray[np.int64], slice]]:
        """Yield the people of the events, int64, and where the events are, a piece of the log at a time."""
        for begin, end in pairwise([*range(0, len(self.items), PIECE), len(self.items)]):
            yield np.searchsorted(self.offsets, np.arange(begin, end), side="right") - 1, slice(begin, end)
