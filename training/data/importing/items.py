"""Check of items, and the recognition of numbers and truth values that were written as text."""

from __future__ import annotations

import json
import re
from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

from index.catalogue import REQUIRED_FIELDS, CatalogueError, Item
from training.data.importing.bad_rows import BadRow, BadRowsError, place
from training.data.importing.files import Kind, kind_by_name
from training.data.importing.plain_items import plain_items
from training.data.importing.records import check_text, record_of
from training.data.importing.tables import RowError, parquet_tables, rows

SEPARATOR = "|"  # between the categories of a cell
_NUMBER = re.compile(r"[+-]?(0|[1-9]\d*)(\.\d+)?([eE][+-]?\d{1,3})?")  # no leading zero: 007 is a name
_TRUTH = {"true": True, "false": False}


def read_items(path: Path, skip_bad: bool = False) -> tuple[list[Item], list[BadRow]]:
    """Read the items of a file and check every row. Return the good items, and the skipped rows.

    Raises `BadRowsError` if there are bad rows and `skip_bad` is not set, and `DataError` if the file cannot be read.
    """
    kept, bad, _ = checked_items(path)
    if bad and not skip_bad:
        raise BadRowsError(bad)
    return list(kept.values()), bad


def checked_items(path: Path) -> tuple[dict[str, Item], list[BadRow], set[str]]:
    """Return the good items by their id, the bad rows, and the ids of items that have only bad ones."""
    bad: list[BadRow] = []
    refused: set[str] = set()
    kept: dict[str, Item] = {}
    numbers: dict[str, int] = {}
    for number, row in _rows(path):
        try:
            item = row if isinstance(row, Item) else check_item(row)
            if item.item_id in kept:
                first = place(path, numbers[item.item_id])
                raise RowError(f"item_id {item.item_id!r} is already that of {first}; ids must be unique")
            kept[item.item_id], numbers[item.item_id] = item, number
        except RowError as error:
            bad.append(BadRow(path, number, str(error)))
            item_id = row.get("item_id") if isinstance(row, dict) else getattr(row, "item_id", None)
            if isinstance(item_id, str | int):
                refused.add(str(item_id))
    return kept, bad, refused - kept.keys()


def _rows(path: Path) -> Iterator[tuple[int, object]]:
    """Yield the rows with their numbers; those of a Parquet file that are surely good as items."""
    kind = kind_by_name(path)
    if kind is not Kind.PARQUET:
        for number, row in rows(path, REQUIRED_FIELDS):
            yield number, _typed(row) if kind is Kind.CSV else row
        return
    for table in parquet_tables(path, REQUIRED_FIELDS):
        for k, item in enumerate(plain_items(table.columns)):
            yield int(table.numbers[k]), table.row(k) if item is None else item


def check_item(row: object) -> Item:
    """Return the item of a row. Raises `RowError` with the reason."""
    record = record_of(row, REQUIRED_FIELDS)
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
    check_text("\n".join(texts))
    return item


def values_as_text(items: Iterable[Item]) -> dict[str, str]:
    """Return the attributes whose texts are all numbers, or all truth values, each with a first such text."""
    examples: dict[str, str] = {}
    kinds: dict[str, Callable[[str], Any] | None] = {}
    for item in items:
        for name, value in item.attributes.items():
            if not isinstance(value, str) or kinds.get(name, _value) is None:
                continue
            kind = _reader(value)
            if kinds.setdefault(name, kind) is not kind:
                kinds[name] = None
            examples.setdefault(name, value)
    return {name: examples[name] for name, kind in kinds.items() if kind is not None}


def converted(item: Item, names: Mapping[str, str]) -> Item:
    """Return an item with the texts of some attributes read as numbers or truth values."""
    if not names.keys() & item.attributes.keys():
        return item
    attributes = {
        name: _value(value) if name in names and isinstance(value, str) else value
        for name, value in item.attributes.items()
    }
    return replace(item, attributes=attributes)


def _typed(row: object) -> object:
    """Return a row of texts with its categories as a list: written as JSON, or with `|` between them."""
    if not isinstance(row, dict) or not isinstance(cell := row.get("categories"), str):
        return row
    if not cell.startswith("["):
        return row | {"categories": [each.strip() for each in cell.split(SEPARATOR) if each.strip()]}
    try:
        return row | {"categories": json.loads(cell)}
    except ValueError as error:
        return RowError(f"'categories' is not a JSON list: {error}")


def _reader(text: str) -> Callable[[str], Any] | None:
    if _NUMBER.fullmatch(text.strip()):
        return _number
    return _truth if text.strip().lower() in _TRUTH else None


def _value(text: str) -> Any:
    reader = _reader(text)
    return text if reader is None else reader(text)


def _number(text: str) -> int | float:
    return float(text) if set(text) & set(".eE") else int(text)


def _truth(text: str) -> bool:
    return _TRUTH[text.strip().lower()]
