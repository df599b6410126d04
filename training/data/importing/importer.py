"""Import of a user's own files as a data set: JSON Lines or Parquet, every row checked.

Items: `item_id` (string or integer), `title`, optional `description`, `categories` (list of strings);
further fields become attributes (string, number, boolean, list of strings or of integers).
Interactions: `user_id` and `item_id` (string or integer), `timestamp` (a finite number), `behaviour` (`search` or
`recommendation`), `query` (required for a search, otherwise ignored) and optionally `simulated_query` (see `schema`).
Other fields of interactions are ignored.
"""

from __future__ import annotations

import json
import math
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import polars as pl

from index.catalogue import REQUIRED_FIELDS, Catalogue, CatalogueError, Item
from index.sequence.events import Task
from training.data.dataset import DataSet
from training.data.importing.bad_rows import PARQUET, BadRow, BadRowsError, RowsError, place, summed_up
from training.data.interactions import encoded, scan_parquet
from training.data.schema import (
    BEHAVIOURS,
    INTERACTION_COLUMNS,
    SIMULATED_QUERY,
    TEXT_COLUMNS,
    DataError,
    DataInfo,
)
from training.inputs import LINES, mistaken

JSON_LINES = (".jsonl", ".ndjson", ".json")
LARGEST = 2**63


class RowError(ValueError):
    """One row is wrong. The message is the reason."""


def import_files(
    items: Path, interactions: Path, name: str, skip_bad: bool = False
) -> tuple[DataSet, list[BadRow]]:
    """Read and check both files. Return the data set and the skipped rows, which its info counts, too.

    An interaction with an item that was refused is left out and counted, and not blamed a second time.
    Raises `BadRowsError` if there are bad rows and `skip_bad` is not set.
    Raises `DataError` if a file cannot be read, a Parquet file lacks a column, or no row is left.
    """
    kept, bad, refused = _items(items)
    bad_items = len(bad)
    of_refused = 0
    events: list[dict[str, Any]] = []
    for number, row in read_rows(interactions, INTERACTION_COLUMNS):
        try:
            event = check_interaction(row)
            if event["item_id"] in refused:
                of_refused += 1
                continue
            if event["item_id"] not in kept:
                raise RowError(f"item {event['item_id']!r} is not among the items")
            events.append(event)
        except RowError as error:
            bad.append(BadRow(interactions, number, str(error)))
    if bad and not skip_bad:
        raise BadRowsError(bad)
    for path, left in ((items, kept), (interactions, events)):
        if not left:
            listed = f"{summed_up(bad)}\n" if bad else ""
            raise RowsError(f"{listed}no usable row in {path}; nothing was written")
    left_out = {
        "bad item rows": bad_items, "bad interaction rows": len(bad) - bad_items,
        "interactions with bad items": of_refused,
    }  # fmt: skip
    left_out = {what: count for what, count in left_out.items() if count}
    info = DataInfo(name, f"imported from {items.name} and {interactions.name}", left_out=left_out)
    catalogue = Catalogue(kept.values())
    return DataSet(info, catalogue, encoded(_frame(events).lazy(), catalogue)), bad


def read_items(path: Path, skip_bad: bool = False) -> tuple[list[Item], list[BadRow]]:
    """Read the items of a file and check every row. Return the good items, and the skipped rows.

    Raises `BadRowsError` if there are bad rows and `skip_bad` is not set, and `DataError` if the file cannot be read.
    """
    kept, bad, _ = _items(path)
    if bad and not skip_bad:
        raise BadRowsError(bad)
    return list(kept.values()), bad


def _items(path: Path) -> tuple[dict[str, Item], list[BadRow], set[str]]:
    """Return the good items by their id, the bad rows, and the ids of items that have only bad ones."""
    bad: list[BadRow] = []
    refused: set[str] = set()
    kept: dict[str, Item] = {}
    numbers: dict[str, int] = {}
    for number, row in read_rows(path, REQUIRED_FIELDS):
        try:
            item = check_item(row)
            if item.item_id in kept:
                first = place(path, numbers[item.item_id])
                raise RowError(f"item_id {item.item_id!r} is already that of {first}; ids must be unique")
            kept[item.item_id], numbers[item.item_id] = item, number
        except RowError as error:
            bad.append(BadRow(path, number, str(error)))
            item_id = row.get("item_id") if isinstance(row, dict) else None
            if isinstance(item_id, str | int):
                refused.add(str(item_id))
    return kept, bad, refused - kept.keys()


def read_rows(path: Path, required: tuple[str, ...]) -> Iterator[tuple[int, object]]:
    """Yield the rows with their numbers. A line that is not JSON is yielded as a `RowError`; blank lines are skipped.

    required: columns of a Parquet file.
    Raises `DataError` if the file is missing, cannot be read, or lacks a column.
    """
    if path.suffix.lower() in JSON_LINES:
        if wrong := mistaken(path, "JSON Lines", *LINES):
            raise DataError(wrong)
        yield from _json_rows(path)
    elif path.suffix.lower() in PARQUET:
        try:
            frame = scan_parquet(path).collect()
        except (pl.exceptions.PolarsError, OSError) as error:
            raise DataError(f"{path} is not a readable Parquet file: {error}") from error
        missing = [column for column in required if column not in frame.columns]
        if missing:
            raise DataError(
                f"{path}: missing column(s) {', '.join(missing)}; found {', '.join(frame.columns)}"
            )
        yield from enumerate(frame.iter_rows(named=True), start=1)
    elif not path.is_file():
        raise DataError(f"{path} is a folder, not a file" if path.is_dir() else f"there is no file {path}")
    else:
        raise DataError(f"{path}: the name must end in .jsonl (JSON Lines) or .parquet, to say what it is")


def check_item(row: object) -> Item:
    """Return the item of a row. Raises `RowError` with the reason."""
    record = _record(row, REQUIRED_FIELDS)
    for key in REQUIRED_FIELDS:
        if record[key] is None:
            raise RowError(f"{key!r} is missing")
    try:
        item = Item.from_json(record)
    except CatalogueError as error:
        raise RowError(str(error)) from error
    texts = [item.item_id, item.title, item.description, *item.categories, *item.attributes]
    for value in item.attributes.values():
        texts += [each for each in (value if isinstance(value, list) else [value]) if isinstance(each, str)]
    for text in texts:
        _check_text(text)
    return item


def check_interaction(row: object) -> dict[str, Any]:
    """Return an interaction with the columns of `schema`, without a check that its item exists.

    Raises `RowError` with the reason.
    """
    record = _record(row, INTERACTION_COLUMNS)
    behaviour = record["behaviour"]
    if behaviour not in BEHAVIOURS:
        raise RowError(f"'behaviour' must be {' or '.join(BEHAVIOURS)}, got {_shown(behaviour)}")
    query = record.get("query") if behaviour == Task.SEARCH.value else None
    if behaviour == Task.SEARCH.value and (not isinstance(query, str) or not query.strip()):
        raise RowError(f"a search needs a 'query' (a string with words in it), got {_shown(query)}")
    simulated = record.get(SIMULATED_QUERY)
    if simulated is not None and not isinstance(simulated, str):
        raise RowError(f"{SIMULATED_QUERY!r} must be a string or null, got {_shown(simulated)}")
    for text in (query, simulated):
        _check_text(text or "")
    return {
        "user_id": _identifier(record, "user_id"),
        "item_id": _identifier(record, "item_id"),
        "timestamp": _timestamp(record["timestamp"]),
        "behaviour": behaviour,
        "query": query,
        SIMULATED_QUERY: simulated if simulated and simulated.strip() else None,
    }


def _json_rows(path: Path) -> Iterator[tuple[int, object]]:
    with path.open("rb") as file:
        for number, line in enumerate(file, start=1):
            if not line.strip():
                continue
            try:
                # some editors write a byte-order mark at the start of the file
                yield number, json.loads(line.decode("utf-8-sig" if number == 1 else "utf-8"))
            except UnicodeDecodeError as error:
                yield number, RowError(f"not UTF-8 text: {error}")
            except (ValueError, RecursionError) as error:
                yield number, RowError(f"not JSON: {error}")


def _record(row: object, required: tuple[str, ...]) -> Mapping[str, Any]:
    if isinstance(row, RowError):
        raise row
    if not isinstance(row, dict):
        raise RowError(f"not a JSON object, got {_shown(row)}")
    missing = [key for key in required if key not in row]
    if missing:
        raise RowError(f"missing {', '.join(map(repr, missing))}")
    return row


def _identifier(record: Mapping[str, Any], key: str) -> str:
    value = record[key]
    if not isinstance(value, str | int) or isinstance(value, bool) or value == "":
        raise RowError(f"{key!r} must be a non-empty string or an integer, got {_shown(value)}")
    return _check_text(str(value))


def _timestamp(value: object) -> int | float:
    if not isinstance(value, int | float) or isinstance(value, bool):
        raise RowError(f"'timestamp' must be a number (such as seconds since 1970), got {_shown(value)}")
    if not math.isfinite(value) or abs(value) >= LARGEST:
        raise RowError(f"'timestamp' must be a finite number below 2^63, got {_shown(value)}")
    return value


def _check_text(text: str) -> str:
    """Return the text. Raises `RowError` for a lone surrogate, which JSON can hold and a text file cannot."""
    try:
        text.encode("utf-8")
    except UnicodeEncodeError as error:
        raise RowError(f"holds text that is not valid Unicode: {error}") from error
    return text


def _shown(value: object) -> str:
    text = repr(value)
    return text if len(text) <= 80 else f"{text[:77]}..."


def _frame(events: list[dict[str, Any]]) -> pl.DataFrame:
    whole = all(isinstance(event["timestamp"], int) for event in events)
    text = dict.fromkeys(TEXT_COLUMNS, pl.String)
    return pl.DataFrame(events, schema={**text, "timestamp": pl.Int64 if whole else pl.Float64}, strict=False)
