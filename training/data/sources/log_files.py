"""Files of a published log: found by name, and their columns checked before anything else is read."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from enum import StrEnum
from pathlib import Path

import polars as pl

from index.contents import contents_of
from training.data.importing.files import PACKED
from training.data.interactions import require_columns, scan_parquet
from training.data.schema import DataError
from training.inputs import mistaken

PATH = " > "
MOST_NAMED = 12  # files of a folder in a message
WORD_NUMBERS = r"^\s*\[[\d,\s]*\]\s*$"


class Column(StrEnum):
    """Content of a column; ids and texts are read as text, numbers as int64 or float64."""

    ID = "whole numbers or text"
    TEXT = "text"
    NUMBER = "numbers"
    WORD_NUMBERS = "lists of word numbers such as [20, 34, 3]"


def check_folder(source: Path) -> None:
    """Raise `DataError` if the source is no folder."""
    if not source.is_dir():
        raise DataError(
            f"no log at {source}: it is {contents_of(source)}, not the folder of the published files"
        )


def text_file(source: Path, *names: str) -> Path:
    """Return the first file of these names that is there, packed or not. Raises `DataError` that says what is there."""
    check_folder(source)
    for name in names:
        for suffix in ("", *PACKED):
            if (path := source / f"{name}{suffix}").is_file():
                if wrong := mistaken(
                    path, "text", "CSV", "text", *(f"{kind} data" for kind in PACKED.values())
                ):
                    raise DataError(wrong)
                return path
    expected = " or ".join(names)
    raise DataError(f"{source}: {expected} is missing (.gz or .zst may follow); found {found_in(source)}")


def parquet_files(source: Path, name: str) -> list[Path]:
    """Return the Parquet files of a table: `NAME/*.parquet`, `NAME.parquet` or `NAME-*.parquet`. Raises `DataError`."""
    check_folder(source)
    for pattern in (f"{name}/*.parquet", f"{name}.parquet", f"{name}-*.parquet"):
        if paths := sorted(source.glob(pattern)):
            return paths
    raise DataError(
        f"{source}: {name} is missing: expected {name}/*.parquet or {name}.parquet; found {found_in(source)}"
    )


def found_in(folder: Path) -> str:
    """Return the names in a folder for a message."""
    names = sorted(path.name + ("/" if path.is_dir() else "") for path in folder.iterdir())
    more = f" and {len(names) - MOST_NAMED} more" if len(names) > MOST_NAMED else ""
    return (", ".join(names[:MOST_NAMED]) + more) or "nothing"


def scan_tables(
    paths: Sequence[Path], columns: Mapping[str, Column], optional: Mapping[str, Column]
) -> pl.LazyFrame:
    """Open Parquet files with the same columns, which come in the types of `Column`.

    optional: columns that a file may lack; they are null then.
    Raises `DataError` that names file and column, what was found and what is expected.
    """
    return pl.concat([_scan_table(path, columns, optional) for path in paths])


def _scan_table(path: Path, columns: Mapping[str, Column], optional: Mapping[str, Column]) -> pl.LazyFrame:
    frame = scan_parquet(path)
    schema = frame.collect_schema()
    require_columns(path, columns, schema.names())
    return frame.select(
        _typed(path, name, kind, schema[name]).alias(name)
        if name in schema
        else pl.lit(None, _type(kind)).alias(name)
        for name, kind in {**columns, **optional}.items()
    )


def _typed(path: Path, name: str, kind: Column, found: pl.DataType) -> pl.Expr:
    column = pl.col(name)
    whole = found.is_integer() or found == pl.Null
    if kind is Column.NUMBER and (whole or found.is_float()):
        return column.cast(pl.Float64)
    if kind is Column.ID and (
        whole or found.is_float()
    ):  # a column of numbers with gaps is one of fractions in pandas
        return column.cast(pl.Int64, strict=False).cast(pl.String)
    if kind is not Column.NUMBER and found in (pl.String, pl.Null):
        return column.cast(pl.String)
    raise DataError(f"{path}: column {name!r} must hold {kind}, found {found}")


def scan_details(
    paths: Sequence[Path], columns: Mapping[str, Column], details: str, fields: Mapping[str, Column]
) -> pl.LazyFrame:
    """Open Parquet files with a column of lists of structs, and return a row for each struct: columns, then its fields.

    A null list, and a null in a list, gives no row. Raises `DataError` as `scan_tables` does.
    """
    opened = []
    for path in paths:
        frame = scan_parquet(path)
        schema = frame.collect_schema()
        require_columns(path, (*columns, details), schema.names())
        found = schema[details]
        inner = found.inner if isinstance(found, pl.List) else None
        if not isinstance(inner, pl.Struct):
            raise DataError(f"{path}: column {details!r} must hold lists of structs, found {found}")
        types = pl.Schema({each.name: each.dtype for each in inner.fields})
        require_columns(
            path, [f"{details}.{name}" for name in fields], [f"{details}.{name}" for name in types]
        )
        rows = frame.select(
            *(_typed(path, name, kind, schema[name]) for name, kind in columns.items()), pl.col(details)
        ).explode(details)
        rows = rows.filter(pl.col(details).is_not_null()).with_columns(
            pl.col(details).struct.field(name).alias(name) for name in fields
        )
        opened.append(
            rows.select(
                *columns,
                *(_typed(path, name, kind, types[name]).alias(name) for name, kind in fields.items()),
            )
        )
    return pl.concat(opened)


def as_label(name: str) -> pl.Expr:
    """Return an id as a list of one text: filters find it, and it is no part of the item's text."""
    return pl.when(pl.col(name).is_not_null()).then(pl.concat_list(name)).alias(name)


def as_path(names: Sequence[str], *unnamed: str) -> pl.Expr:
    """Return the levels of a category as a list of one path, "A > B"; null without a level. unnamed: cells for none."""
    levels = [pl.when(~pl.col(name).is_in(unnamed)).then(pl.col(name)) for name in names]
    path = pl.concat_str(levels, separator=PATH, ignore_nulls=True)
    return pl.when(path != "").then(pl.concat_list(path)).alias("categories")


def scan_text(
    path: Path,
    columns: Mapping[str, Column],
    *,
    separator: str = ",",
    quoted: bool = True,
    names: Sequence[str] | None = None,
) -> pl.LazyFrame:
    """Open a file of text with a header line, whose columns come in the types of `Column`; an empty cell is null.

    quoted: whether cells may stand in quotation marks.
    names: of all columns, for a file without a header line.
    Raises `DataError` that names file and column, and the first row, from 1, that is no such value.
    """
    frame = pl.scan_csv(
        path,
        separator=separator,
        quote_char='"' if quoted else None,
        has_header=names is None,
        infer_schema=False,
        glob=False,
        new_columns=None if names is None else list(names),
    )
    try:
        require_columns(path, columns, frame.collect_schema().names())
        cells = frame.select(*columns)
        _check_cells(path, frame, columns)
    except (pl.exceptions.PolarsError, OSError) as error:
        raise unreadable(path, error) from error
    return cells.with_columns(
        pl.col(name).cast(pl.Float64, strict=False) for name, kind in columns.items() if kind is Column.NUMBER
    )


def unreadable(place: Path | str, error: Exception) -> DataError:
    """Return the error of a file that polars cannot read."""
    return DataError(f"{place} cannot be read as the published layout: {' '.join(str(error).split())[:300]}")


def _check_cells(path: Path, frame: pl.LazyFrame, columns: Mapping[str, Column]) -> None:
    wrong = {
        name: ~pl.col(name).str.contains(WORD_NUMBERS)
        if kind is Column.WORD_NUMBERS
        else pl.col(name).is_not_null()
        & pl.col(name).str.strip_chars().cast(pl.Float64, strict=False).is_null()
        for name, kind in columns.items()
        if kind in (Column.NUMBER, Column.WORD_NUMBERS)
    }
    if not wrong:
        return
    numbered = frame.with_row_index("row")
    # polars sees that a line has too many cells only where it reads all of them
    every_cell = pl.all_horizontal(pl.all().is_null()).sum().alias("lines without a cell")
    found = numbered.select(
        every_cell,
        *(each.fill_null(False).sum().alias(name) for name, each in wrong.items()),
        *(pl.col("row").filter(each).min().alias(f"first {name}") for name, each in wrong.items()),
    ).collect(engine="streaming")
    for name in wrong:
        if count := found[name].item():
            first = found[f"first {name}"].item()
            value = frame.select(name).slice(first, 1).collect().item()
            more = f" (and {count - 1:,} more rows)" if count > 1 else ""
            raise DataError(
                f"{path} row {first + 1}: column {name!r} must hold {columns[name]}, got {value!r:.80}{more}"
            )


def _type(kind: Column) -> pl.DataType:
    return pl.Float64() if kind is Column.NUMBER else pl.String()
