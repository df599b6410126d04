"""Amazon reviews as published: reviews of one department, and the metadata of its products, as JSON Lines.

2014 (McAuley): `reviews_NAME_5.json.gz` (reviewerID, asin, unixReviewTime in seconds) and `meta_NAME.json.gz`, whose
lines are Python literals. 2018: the same fields in JSON. 2023 (Hou et al.): `NAME.jsonl.gz` (user_id, parent_asin,
timestamp in milliseconds) and `meta_NAME.jsonl.gz`. Reviews are interactions; searches are made from category paths.
"""

from __future__ import annotations

import ast
import html
import io
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import polars as pl

from index.records import parse_json
from training.data.dataset import DataSet
from training.data.importing.files import opened
from training.data.importing.tables import RowError, tables
from training.data.schema import DataError
from training.data.sources.category_queries import HOW, path_query, with_queries
from training.data.sources.filters import AmazonQueries, CatalogueOf, Filters
from training.data.sources.log import Log, Part, data_set_of
from training.data.sources.log_files import PATH, check_folder, found_in

NAME = "amazon-reviews"
SUFFIXES = tuple(f"{kind}{packed}" for kind in (".json", ".jsonl") for packed in ("", ".gz", ".zst"))
# columns of person, product and time, by the year of the release
LAYOUTS = {"2014": ("reviewerID", "asin", "unixReviewTime"), "2023": ("user_id", "parent_asin", "timestamp")}
ITEM_TYPES = {
    "item_id": pl.String(), "title": pl.String(), "description": pl.String(), "categories": pl.List(pl.String),
    "brand": pl.String(),
}  # fmt: skip
MOST_DESCRIPTION = 2_000  # characters; texts are cut much earlier when they are embedded


def amazon_reviews(source: Path, filters: Filters, queries: AmazonQueries = "category-paths") -> DataSet:
    """Read the two files. queries: how searches are made; `none` leaves all interactions recommendations.

    Raises `DataError` for a missing file or column, and a line that cannot be read.
    """
    check_folder(source)
    meta, reviews = _file(source, "meta_"), _file(source, "")
    events = _reviews(reviews)
    wanted = None if filters.catalogue is CatalogueOf.ALL else set(events["item_id"].unique().to_list())
    items, paths = _products(meta, wanted)
    simulation: Mapping[str, str] = {}
    if queries == "category-paths":
        options = {
            item: sorted({query for path in of_item if (query := path_query(path))})
            for item, of_item in paths.items()
        }
        events, simulation = with_queries(events, options, NAME, filters.seed), HOW
    else:
        events = events.with_columns(pl.lit(None, pl.String).alias("query"))
    part = Part(str(reviews), events.with_columns(chosen=True).lazy(), times="time of the review")
    source_text = f"Amazon reviews, {reviews.name}; research use, not to be redistributed"
    return data_set_of(
        Log(NAME, source_text, items.lazy(), f"{meta}: title", [part], simulation=simulation), filters
    )


def _file(source: Path, prefix: str) -> Path:
    found = [path for path in sorted(source.iterdir()) if path.name.endswith(SUFFIXES) and path.is_file()]
    found = [path for path in found if path.name.startswith("meta_") == bool(prefix)]
    what = "metadata, meta_NAME" if prefix else "reviews, NAME"
    if len(found) != 1:
        told = ", ".join(path.name for path in found) or found_in(source)
        raise DataError(
            f"{source}: expected one file of {what}.json or .jsonl (.gz or .zst may follow), of one department; "
            f"found {told}"
        )
    return found[0]


def _reviews(path: Path) -> pl.DataFrame:
    """Return the reviews, columns `user_id`, `item_id`, `timestamp`."""
    names: tuple[str, ...] = ()
    parts = []
    every = [name for layout in LAYOUTS.values() for name in layout]
    for table in tables(path, (), every):
        if not names:
            first = table.row(0)
            keys = first if isinstance(first, dict) else {}
            names = next((layout for layout in LAYOUTS.values() if keys.keys() >= set(layout)), ())
            if not names:
                expected = " or ".join(", ".join(layout) for layout in LAYOUTS.values())
                shown = ", ".join(keys) or f"{first!r:.80}"
                raise DataError(
                    f"{path} line {table.numbers[0]}: expected the fields {expected}; found {shown}"
                )
        frame = table.columns.select(names)
        types = {name: pl.Float64 if name == names[2] else pl.String for name in names}
        columns = {name: frame[name].cast(kind, strict=False).to_list() for name, kind in types.items()}
        whole = frame.select(~pl.any_horizontal(pl.all().is_null())).to_series().to_list()
        for k in (k for k, sure in enumerate(whole) if not sure):
            for name, value in zip(
                names, _values(path, int(table.numbers[k]), table.row(k), names), strict=True
            ):
                columns[name][k] = value
        parts.append(pl.DataFrame(columns, schema=types))
    if not parts:
        raise DataError(f"{path} holds no review")
    return pl.concat(parts).rename(dict(zip(names, ("user_id", "item_id", "timestamp"), strict=True)))


def _values(path: Path, number: int, row: object, names: tuple[str, ...]) -> list[Any]:
    """Return the values of a review that does not fit its columns. Raises `DataError`."""
    if isinstance(row, RowError):
        raise DataError(f"{path} line {number}: {row}")
    found = [row.get(name) if isinstance(row, dict) else None for name in names]
    for name, value, kind in zip(names, found, (str, str, int | float), strict=True):
        if value is not None and (not isinstance(value, kind) or isinstance(value, bool)):
            expected = "text" if kind is str else "a number"
            raise DataError(f"{path} line {number}: field {name!r} must hold {expected}, found {value!r:.80}")
    return found


def _products(path: Path, wanted: set[str] | None) -> tuple[pl.DataFrame, dict[str, list[list[str]]]]:
    """Return the items, and the category paths of each. wanted: ids; None for all."""
    rows: list[dict[str, Any]] = []
    paths: dict[str, list[list[str]]] = {}
    for number, record in _records(path):
        item_id = record.get("parent_asin") or record.get("asin")
        if not isinstance(item_id, str):
            shown = ", ".join(map(str, record))
            raise DataError(
                f"{path} line {number}: expected the field asin (or parent_asin), a text; found {shown}"
            )
        if wanted is not None and item_id not in wanted:
            continue
        levels = _paths(record)
        paths.setdefault(item_id, levels)
        rows.append(
            {
                "item_id": item_id,
                "title": _text(record.get("title")),
                "description": _text(record.get("description"))[:MOST_DESCRIPTION],
                "categories": [PATH.join(path) for path in levels],
                "brand": _text(record.get("brand") or record.get("store")) or None,
            }
        )
    return pl.DataFrame(rows, schema=ITEM_TYPES), paths


def _records(path: Path) -> Iterator[tuple[int, dict[Any, Any]]]:
    """Yield the lines, JSON or Python literals, with their numbers. Raises `DataError`."""
    with opened(path) as file:
        for number, line in enumerate(
            io.TextIOWrapper(file, "utf-8-sig", errors="replace", newline="\n"), start=1
        ):
            if not line.strip():
                continue
            try:
                record = ast.literal_eval(line) if line.startswith("{'") else parse_json(line)
            except (ValueError, SyntaxError, RecursionError, MemoryError) as error:
                raise DataError(
                    f"{path} line {number}: neither JSON nor a Python literal: {error}"
                ) from error
            if not isinstance(record, dict):
                raise DataError(f"{path} line {number}: expected an object, found {record!r:.80}")
            yield number, record


def _paths(record: Mapping[Any, Any]) -> list[list[str]]:
    """Return the category paths: a list of paths (2014), or one path (2018 and 2023)."""
    found = record.get("categories") or record.get("category") or []
    nested = found if found and isinstance(found[0], list) else [found]
    paths = [[text for level in path if (text := _text(level))] for path in nested if isinstance(path, list)]
    return [path for path in paths if path]


def _text(value: object) -> str:
    """Return a text without its HTML entities; the texts of a list joined; empty for anything else."""
    if isinstance(value, list):
        return " ".join(filter(None, map(_text, value)))
    return " ".join(html.unescape(value).split()) if isinstance(value, str) else ""
