"""`interactions.parquet` of a data set: reading with a check of every row, and writing (format in `schema`)."""

from __future__ import annotations

from collections.abc import Collection, Iterable
from pathlib import Path

import numpy as np
import polars as pl
import pyarrow.parquet as pq
from numpy.typing import NDArray

from index.catalogue import Catalogue
from index.sequence.events import Task
from training.data.histories import NONE, Histories
from training.data.schema import (
    BEHAVIOURS,
    ITEMS_FILE,
    REQUIRED_COLUMNS,
    SIMULATED_QUERY,
    TEXT_COLUMNS,
    DataError,
)
from training.inputs import mistaken


def scan_parquet(path: Path) -> pl.LazyFrame:
    """Open a Parquet file to be read in pieces. Raises `DataError` that says what is there instead."""
    if wrong := mistaken(path, "a Parquet file", "a Parquet file"):
        raise DataError(wrong)
    try:
        frame = pl.scan_parquet(path, glob=False)
        frame.collect_schema()
    except (pl.exceptions.PolarsError, OSError) as error:
        raise DataError(f"{path} is not a readable Parquet file: {error}") from error
    return frame


def require_columns(path: Path, required: Iterable[str], found: Collection[str]) -> None:
    """Raise `DataError` that names the columns that a file lacks. found: those that it has."""
    missing = [name for name in required if name not in found]
    if missing:
        raise DataError(f"{path}: missing column(s) {', '.join(missing)}; found {', '.join(found)}")


def read_interactions(path: Path, catalogue: Catalogue) -> Histories:
    """Read and check the interactions of a data set.

    Raises `DataError` with the first wrong row, from 1, and the number of further ones.
    """
    frame = _typed(path)
    try:
        items = pl.Series(catalogue.item_ids, dtype=pl.String)
        _check_rows(path, frame, items)
        return encoded_histories(frame, items)
    except (pl.exceptions.PolarsError, OSError) as error:
        raise DataError(f"{path} is not a readable Parquet file: {error}") from error


def encoded_histories(frame: pl.LazyFrame, items: pl.Series) -> Histories:
    """Return the histories of checked interactions; people are in the order of their first rows.

    frame: the columns of `schema`. items: ids of the catalogue.
    """
    query = pl.when(pl.col("behaviour") == Task.SEARCH.value).then(pl.col("query"))
    simulated = pl.col(SIMULATED_QUERY)
    users = _distinct(frame.select(text=pl.col("user_id")))
    texts = _distinct(pl.concat([frame.select(text=query), frame.select(text=simulated)]))
    log = frame.select(
        _place(pl.col("user_id"), users).alias("user"),
        _place(pl.col("item_id"), items).alias("item"),
        _place(query, texts).alias("query"),
        _place(simulated, texts).alias("simulated"),
        "timestamp",
    )
    return Histories.encoded(log.collect(engine="streaming"), users, texts)


def write_interactions(histories: Histories, item_ids: list[str], path: Path) -> None:
    """Write the interactions of a data set, a piece at a time. Raises `OSError`, `pl.exceptions.PolarsError`."""
    users, items = pl.Series(histories.user_ids), pl.Series(item_ids, dtype=pl.String)
    texts = pl.Series(histories.texts)
    writer = None
    try:
        for people, part in histories.pieces():
            queries = histories.queries[part]
            piece = pl.DataFrame(
                {
                    "user_id": users.gather(people),
                    "item_id": items.gather(histories.items[part]),
                    "timestamp": histories.timestamps[part],
                    "behaviour": pl.Series(queries != NONE).replace_strict(
                        {True: Task.SEARCH.value, False: Task.RECOMMENDATION.value}, return_dtype=pl.String
                    ),
                    "query": _texts(texts, queries),
                    SIMULATED_QUERY: _texts(texts, histories.simulated[part]),
                }
            ).to_arrow()
            writer = writer or pq.ParquetWriter(path, piece.schema, compression="zstd")
            writer.write_table(piece)
    finally:
        if writer is not None:
            writer.close()


def _typed(path: Path) -> pl.LazyFrame:
    """Open the file. The result always has the column `simulated_query`. Raises `DataError` for wrong columns."""
    frame = scan_parquet(path)
    columns = dict(frame.collect_schema())
    require_columns(path, REQUIRED_COLUMNS, columns)
    columns.setdefault(SIMULATED_QUERY, pl.Null())
    for column in TEXT_COLUMNS:
        if columns[column] == pl.Null:  # a column without a single value
            frame = frame.with_columns(pl.lit(None, pl.String).alias(column))
        elif columns[column] != pl.String:
            raise DataError(f"{path}: column {column!r} must hold strings, it holds {columns[column]}")
    if not columns["timestamp"].is_numeric():
        raise DataError(f"{path}: column 'timestamp' must hold numbers, it holds {columns['timestamp']}")
    kind = pl.Int64 if columns["timestamp"].is_integer() else pl.Float64
    return frame.with_columns(pl.col("timestamp").cast(kind, strict=False))


def _check_rows(path: Path, frame: pl.LazyFrame, items: pl.Series) -> None:
    """Raise `DataError` for the first wrong row. items: ids of the catalogue."""
    blank = pl.col("query").fill_null("").str.strip_chars() == ""
    known = _place(pl.col("item_id"), items) != NONE
    checks = {
        "'user_id' is empty": pl.col("user_id").fill_null("") == "",
        f"'item_id' is not in {ITEMS_FILE}": ~known,
        "'timestamp' is not a finite number": ~pl.col("timestamp").is_finite().fill_null(False),
        f"'behaviour' is not one of {', '.join(BEHAVIOURS)}": ~pl.col("behaviour")
        .is_in(list(BEHAVIOURS))
        .fill_null(False),
        "a search without a query": (pl.col("behaviour") == Task.SEARCH.value).fill_null(False) & blank,
    }
    row = pl.col("row")
    found = (
        frame.with_row_index("row")
        .select(
            pl.len().alias("rows"),
            *(wrong.sum().alias(f"count {k}") for k, wrong in enumerate(checks.values())),
            *(row.filter(wrong).min().alias(f"first {k}") for k, wrong in enumerate(checks.values())),
        )
        .collect(engine="streaming")
    )
    if not found["rows"].item():
        raise DataError(f"{path} holds no interaction")
    for k, reason in enumerate(checks):
        count, first = found[f"count {k}"].item(), found[f"first {k}"].item()
        if count:
            values = frame.select(REQUIRED_COLUMNS).slice(first, 1).collect().row(0, named=True)
            more = f" (and {count - 1} more rows)" if count > 1 else ""
            raise DataError(
                f"{path} row {first + 1}: {reason}{more}; the row is {values}. "
                "Files of your own go through 'gems data import', which reports every bad row."
            )


def _distinct(texts: pl.LazyFrame) -> pl.Series:
    """Return every text of the column `text` once, in the order of their first rows."""
    unique = texts.drop_nulls().unique(maintain_order=True)
    return unique.collect(engine="streaming")["text"]


def _place(texts: pl.Expr, among: pl.Series) -> pl.Expr:
    """Return the place of each text among distinct ones, int32; -1 if it is none of them."""
    return texts.cast(pl.Enum(among), strict=False).to_physical().cast(pl.Int32).fill_null(NONE)


def _texts(texts: pl.Series, places: NDArray[np.int32]) -> pl.Series:
    """Return texts by their places; null for -1."""
    place = pl.Series(places)
    return texts.gather(place.set(place == NONE, None))
