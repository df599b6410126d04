"""Check of interactions: whole columns first, and row by row what the columns leave in doubt."""

from __future__ import annotations

from collections.abc import Collection, Mapping
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np
import polars as pl
from numpy.typing import NDArray

from index.sequence.events import Task
from training.data.histories import NONE, Histories
from training.data.importing.bad_rows import BadRow
from training.data.importing.files import Kind, kind_by_name
from training.data.importing.plain_items import VISIBLE
from training.data.importing.records import check_text, record_of, shown
from training.data.importing.tables import RowError, Table, tables
from training.data.importing.times import Clock, time_column, time_of
from training.data.schema import BEHAVIOURS, INTERACTION_COLUMNS, SIMULATED_QUERY

COLUMNS = (*INTERACTION_COLUMNS, "query", SIMULATED_QUERY)


def check_interaction(row: object, text_numbers: bool = False) -> dict[str, Any]:
    """Return an interaction with the columns of `schema`, without a check that its item exists.

    text_numbers: whether a text may be a number, as in a file without types.
    Its `timestamp` is a number, with `date` whether that was a date. Raises `RowError` with the reason.
    """
    record = record_of(row, INTERACTION_COLUMNS)
    behaviour = record["behaviour"]
    if behaviour not in BEHAVIOURS:
        raise RowError(f"'behaviour' must be {' or '.join(BEHAVIOURS)}, got {shown(behaviour)}")
    query = record.get("query") if behaviour == Task.SEARCH.value else None
    if behaviour == Task.SEARCH.value and (not isinstance(query, str) or not query.strip()):
        raise RowError(f"a search needs a 'query' (a string with words in it), got {shown(query)}")
    simulated = record.get(SIMULATED_QUERY)
    if simulated is not None and not isinstance(simulated, str):
        raise RowError(f"{SIMULATED_QUERY!r} must be a string or null, got {shown(simulated)}")
    for text in (query, simulated):
        check_text(text or "")
    user, item = _identifier(record, "user_id"), _identifier(record, "item_id")
    stamp, date = time_of(record["timestamp"], text_numbers)
    return {
        "user_id": user,
        "item_id": item,
        "timestamp": stamp,
        "date": date,
        "query": query,
        SIMULATED_QUERY: simulated if simulated and simulated.strip() else None,
    }


class InteractionLog:
    """The interactions of a file: the good ones as columns, the bad ones as rows with reasons.

    unit: of the time stamps, "" for none that is known; of what was read.
    path: the file. called: how messages name it, if not by its path.
    item_ids: ids of the items, in the order of the catalogue.
    refused: ids of items that were refused; their interactions are counted in `of_refused` and not blamed.
    """

    def __init__(
        self, path: Path, item_ids: list[str], refused: Collection[str], called: Path | None = None
    ) -> None:
        self.path = path
        self._called = called or path
        self.bad: list[BadRow] = []
        self.of_refused = 0
        self.unit = ""
        self._clock = Clock(self._called)
        # An Enum would be hashed anew for each table. Categories are kept as long as a column has them.
        self._items = pl.Series(item_ids, dtype=pl.String).cast(pl.Categorical(pl.Categories.random()))
        codes = self._items.to_physical()
        self._rows = np.full(len(codes) + 1, NONE, np.int32)  # by the code of an item
        self._rows[codes.to_numpy()] = np.arange(len(codes))
        self._item_ids = item_ids
        self._refused = refused
        self._untyped = kind_by_name(path) is Kind.CSV
        self._users, self._texts = pl.Categories.random(), pl.Categories.random()
        self._parts: list[pl.DataFrame] = []

    @cached_property
    def _places(self) -> dict[str, int]:
        """Catalogue rows by item id, for rows that are in doubt; most files have none."""
        return {item_id: place for place, item_id in enumerate(self._item_ids)}

    def read(self) -> None:
        """Read and check all rows. Raises `DataError` if the file cannot be read, or times are of several units."""
        for table in tables(self.path, INTERACTION_COLUMNS, COLUMNS):
            self._add(table)
        self.unit = self._clock.unit()

    def __len__(self) -> int:
        return sum(map(len, self._parts))

    def histories(self) -> Histories:
        """Return the good interactions, sorted; people are in the order of their first rows."""
        log = pl.concat(self._parts, how="vertical_relaxed")
        self._parts = []
        people, users = _places(log["user"], self._users)
        asked, texts = _places(pl.concat([log["query"], log["simulated"]]), self._texts)
        log = log.with_columns(
            _numbers(log["user"], people), _numbers(log["query"], asked), _numbers(log["simulated"], asked)
        )
        return Histories.encoded(log.rechunk(), users, texts)  # to gather from many chunks is slow

    def _add(self, table: Table) -> None:
        checked, good, dates = self._checked(table)
        parts = [checked.filter(good)]
        self._clock.see(parts[0]["timestamp"], parts[0]["number"], dates)
        doubtful = np.flatnonzero(~good.to_numpy())
        if len(doubtful):
            parts += self._one_by_one(table, doubtful)
        joined = pl.concat(parts, how="vertical_relaxed")
        if len(parts) > 1:
            joined = joined.sort("number")
        self._parts.append(joined.drop("number"))

    def _checked(self, table: Table) -> tuple[pl.DataFrame, pl.Series, bool]:
        """Return the table in the columns of `_parts`, which rows of it are surely good, and if times are dates."""
        frame = table.columns
        stamps, dates = time_column(frame["timestamp"], text_numbers=self._untyped)
        user, item = (_as_text(frame[name]) for name in ("user_id", "item_id"))
        query, simulated, behaviour = (
            _as_text(frame[name], whole=False) for name in ("query", SIMULATED_QUERY, "behaviour")
        )
        search = (behaviour == Task.SEARCH.value).fill_null(False)
        query = query.set(~search, None)
        place = self._place(item)
        good = (place != NONE) & stamps.is_not_null() & user.is_not_null() & (user != "").fill_null(False)
        good &= (search & query.str.contains(VISIBLE).fill_null(False)) | (
            behaviour == Task.RECOMMENDATION.value
        ).fill_null(False)
        is_text = frame[SIMULATED_QUERY].dtype in (pl.String, pl.Null)
        good &= (
            simulated.str.contains(VISIBLE) | simulated.is_null()
            if is_text
            else frame[SIMULATED_QUERY].is_null()
        )
        columns = {"number": table.numbers, "user": user, "item": place, "query": query}
        return (
            self._coded(columns | {"simulated": simulated, "timestamp": stamps}),
            good.fill_null(False),
            dates,
        )

    def _place(self, item_ids: pl.Series) -> pl.Series:
        """Return the catalogue row of each item, int32; -1 for an unknown one and for null."""
        none = len(self._rows) - 1
        codes = item_ids.cast(self._items.dtype).to_physical().fill_null(none).to_numpy()
        return pl.Series("item", self._rows[np.minimum(codes, none)])

    def _one_by_one(self, table: Table, doubtful: NDArray[np.int64]) -> list[pl.DataFrame]:
        """Check rows one by one. Return the good ones, in the columns of `_parts`."""
        kept: list[tuple[int, dict[str, Any]]] = []
        for k in doubtful.tolist():
            number = int(table.numbers[k])
            try:
                event = check_interaction(table.row(k), self._untyped)
                if event["item_id"] in self._refused:
                    self.of_refused += 1
                    continue
                if event["item_id"] not in self._places:
                    raise RowError(f"item {event['item_id']!r} is not among the items")
            except RowError as error:
                self.bad.append(BadRow(self._called, number, str(error)))
            else:
                kept.append((number, event))
        parts = []
        for date, kind in ((True, int), (False, int), (False, float)):
            of_kind = [
                (number, event)
                for number, event in kept
                if event["date"] is date and isinstance(event["timestamp"], kind)
            ]
            if not of_kind:
                continue
            events = [event for _, event in of_kind]
            stamps = pl.Series([event["timestamp"] for event in events])
            numbers = pl.Series([number for number, _ in of_kind])
            self._clock.see(stamps, numbers, date)
            columns = {
                "number": numbers,
                "user": pl.Series([event["user_id"] for event in events]),
                "item": pl.Series([self._places[event["item_id"]] for event in events], dtype=pl.Int32),
                "query": pl.Series([event["query"] for event in events], dtype=pl.String),
                "simulated": pl.Series([event[SIMULATED_QUERY] for event in events], dtype=pl.String),
                "timestamp": stamps,
            }
            parts.append(self._coded(columns))
        return parts

    def _coded(self, columns: Mapping[str, Any]) -> pl.DataFrame:
        """Write each text as the number of its category: 32 bytes an interaction, however long its texts are."""
        users, texts = pl.Categorical(self._users), pl.Categorical(self._texts)
        return pl.DataFrame(columns).with_columns(
            pl.col("user").cast(users),
            pl.col("query", "simulated").cast(texts),
            pl.col("number").cast(pl.Int64),
        )


def _as_text(column: pl.Series, whole: bool = True) -> pl.Series:
    """Return a column as text; null throughout if its values are neither text nor, with `whole`, whole numbers."""
    if column.dtype == pl.String or (whole and column.dtype.is_integer()):
        return column.cast(pl.String)
    return pl.Series(column.name, [None] * len(column), pl.String)


def _places(texts: pl.Series, categories: pl.Categories) -> tuple[NDArray[np.int32], pl.Series]:
    """Number texts in the order in which they come first. Return the number of each category, and the texts.

    The number at the end is that of null, -1.
    """
    order = texts.to_physical().drop_nulls().unique(maintain_order=True).to_numpy()
    places = np.full(int(order.max(initial=0)) + 2, NONE, np.int32)
    places[order] = np.arange(len(order))
    return places, categories.to_series().gather(order)


def _numbers(texts: pl.Series, places: NDArray[np.int32]) -> pl.Series:
    """Return the numbers of texts, int32."""
    codes = texts.to_physical().fill_null(len(places) - 1).to_numpy()
    return pl.Series(texts.name, places[codes])


def _identifier(record: Mapping[str, Any], key: str) -> str:
    value = record[key]
    if not isinstance(value, str | int) or isinstance(value, bool) or value == "":
        raise RowError(f"{key!r} must be a non-empty string or an integer, got {shown(value)}")
    return check_text(str(value))
