"""Rows of a file, a table at a time: as columns, to be checked at once, and one by one where that is not enough."""

from __future__ import annotations

import csv
import io
import json
import re
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from itertools import islice
from pathlib import Path
from typing import Any

import numpy as np
import polars as pl
from numpy.typing import NDArray

from training.data.importing.files import Kind, kind_of, opened
from training.data.interactions import require_columns, scan_parquet
from training.data.schema import DataError

BLOCK = 1 << 24  # bytes of lines in a table
ROWS = 1 << 18  # rows of a table
DELIMITERS = ",;\t|"
_HALF_LETTER = re.compile(rb"\\u[dD][89a-fA-F]")  # polars would take half of a surrogate pair for a letter
_TYPES = {int: pl.Int64, float: pl.Float64}


class RowError(ValueError):
    """One row is wrong. The message is the reason."""


@dataclass(frozen=True)
class Table:
    """Some rows of a file.

    numbers: int64 [n], line (JSON Lines, CSV) or row (Parquet) of each, from 1.
    columns: n rows of the wanted columns. Wherever a value is of the type of its column, it is that of the file; rows
        that did not fit are null throughout.
    row: the k-th row as it is in the file, a `RowError` if it is none.
    """

    numbers: NDArray[np.int64]
    columns: pl.DataFrame
    row: Callable[[int], object]


def rows(path: Path, required: Sequence[str]) -> Iterator[tuple[int, object]]:
    """Yield the rows with their numbers. A row that cannot be read is yielded as a `RowError`; blank ones are skipped.

    required: columns that a file with named columns must have.
    Raises `DataError` if the file is missing, cannot be read, or lacks a column.
    """
    kind = kind_of(path)
    if kind is Kind.LINES:
        for number, line in _numbered_lines(path):
            yield number, _parsed(line)
    elif kind is Kind.CSV:
        for numbers, records in _records(path, required):
            yield from zip(numbers, records, strict=True)
    else:
        for table in parquet_tables(path, required):
            yield from zip(table.numbers.tolist(), table.columns.iter_rows(named=True), strict=True)


def tables(path: Path, required: Sequence[str], wanted: Sequence[str]) -> Iterator[Table]:
    """Yield the rows of a file, a table at a time; see `parquet_tables` for all columns of a Parquet file.

    required: columns that a file with named columns must have. wanted: all columns of the tables.
    Raises `DataError` if the file is missing, cannot be read, or lacks a column.
    """
    kind = kind_of(path)
    if kind is Kind.LINES:
        for number, block in _blocks(path):
            if (table := _table_of_lines(number, block, wanted)) is not None:
                yield table
    elif kind is Kind.CSV:
        for lines, records in _records(path, required):
            whole = [{} if isinstance(record, RowError) else record for record in records]
            cells = {name: [record.get(name) for record in whole] for name in wanted}
            columns = pl.DataFrame(cells, schema=dict.fromkeys(wanted, pl.String))
            yield Table(np.array(lines), columns, records.__getitem__)
    else:
        yield from parquet_tables(path, required, wanted)


def parquet_tables(
    path: Path, required: Sequence[str], wanted: Sequence[str] | None = None
) -> Iterator[Table]:
    """Yield the rows of a Parquet file. wanted: all columns of the tables, texts if the file lacks one; or its own."""
    first = 1
    for frame in _frames(path, required, wanted):
        missing = [name for name in wanted or () if name not in frame.columns]
        whole = frame.with_columns(pl.lit(None, pl.String).alias(name) for name in missing)
        yield Table(np.arange(first, first + len(frame)), whole, partial(whole.row, named=True))
        first += len(frame)


def _blocks(path: Path) -> Iterator[tuple[int, bytes]]:
    """Yield whole lines, about `BLOCK` bytes at a time, and the number of the first."""
    with opened(path) as file:
        number, rest = 1, b""
        while piece := file.read(BLOCK):
            if number == 1 and not rest:
                piece = piece.removeprefix(b"\xef\xbb\xbf")  # some editors write a byte-order mark
            lines, newline, rest = (rest + piece).rpartition(b"\n")
            if newline:
                yield number, lines
                number += lines.count(b"\n") + 1
        if rest:
            yield number, rest


def _numbered_lines(path: Path) -> Iterator[tuple[int, bytes]]:
    for first, block in _blocks(path):
        for number, line in enumerate(block.split(b"\n"), start=first):
            if line.strip():
                yield number, line


def _parsed(line: bytes) -> object:
    try:
        return json.loads(line.decode("utf-8"))
    except UnicodeDecodeError as error:
        return RowError(f"not UTF-8 text: {error}")
    except (ValueError, RecursionError) as error:
        return RowError(f"not JSON: {error}")


def _table_of_lines(first: int, block: bytes, wanted: Sequence[str]) -> Table | None:
    lines = block.split(b"\n")
    numbers = np.arange(first, first + len(lines))
    if any(not line.strip() for line in lines):
        full = [k for k, line in enumerate(lines) if line.strip()]
        lines, numbers = [lines[k] for k in full], numbers[full]
        if not lines:
            return None
    columns = _columns_of_lines(lines, block, wanted)
    if columns is None:
        columns = pl.DataFrame({name: [None] * len(lines) for name in wanted})
    return Table(numbers, columns, lambda k: _parsed(lines[k]))


def _columns_of_lines(lines: list[bytes], block: bytes, wanted: Sequence[str]) -> pl.DataFrame | None:
    """Read lines as columns of the types that the first line has. Return None if not every line fits."""
    try:
        found = json.loads(lines[0])
        types = {name: _TYPES.get(type(found.get(name)), pl.String) for name in wanted}
        columns = pl.read_ndjson(io.BytesIO(block), schema=types)
    except (ValueError, AttributeError, RecursionError, pl.exceptions.PolarsError):
        return None
    if len(columns) != len(lines):
        return None
    for name in wanted:
        if types[name] == pl.String and _quoted(block, name) != len(columns) - columns[name].null_count():
            return None  # polars writes other values as text, and reads the first of two of a name
    if b"\\u" in block:
        half = [_HALF_LETTER.search(line) is not None for line in lines]
        columns = columns.with_columns(pl.when(~pl.Series(half)).then(pl.all()))
    return columns


def _quoted(block: bytes, name: str) -> int:
    """Return how often a name has a text as its value."""
    key = f'"{name}"'.encode()
    spaced, tight = block.count(key + b': "'), block.count(key + b':"')
    if spaced + tight == block.count(key):
        return spaced + tight
    return len(re.findall(re.escape(key) + rb'\s*:\s*"', block))


def _frames(path: Path, required: Sequence[str], wanted: Sequence[str] | None) -> Iterator[pl.DataFrame]:
    frame = scan_parquet(path)
    names = frame.collect_schema().names()
    require_columns(path, required, names)
    if wanted is not None:
        frame = frame.select([name for name in wanted if name in names])
    try:
        yield from frame.collect_batches(chunk_size=ROWS, maintain_order=True)
    except (pl.exceptions.PolarsError, OSError) as error:
        raise DataError(f"{path} is not a readable Parquet file: {error}") from error


def _records(path: Path, required: Sequence[str]) -> Iterator[tuple[list[int], list[Any]]]:
    """Yield the lines and the records of a CSV file; an empty cell is none."""
    with opened(path) as file:
        text = io.TextIOWrapper(file, "utf-8-sig", errors="surrogateescape", newline="")
        header = text.readline()
        delimiter = max(DELIMITERS, key=header.count)
        names = next(csv.reader([header], delimiter=delimiter), [])
        require_columns(path, required, names)
        if len(set(names)) < len(names):
            raise DataError(f"{path}: two columns have one name; found {', '.join(names)}")
        reader = csv.reader(text, delimiter=delimiter, strict=True)
        rows = _csv_rows(reader, names)
        while part := list(islice(rows, ROWS)):
            yield [line for line, _ in part], [record for _, record in part]


def _csv_rows(reader: Any, names: list[str]) -> Iterator[tuple[int, Mapping[str, str | None] | RowError]]:
    while True:
        line = reader.line_num + 2  # after the header
        try:
            cells = next(reader)
        except StopIteration:
            return
        except csv.Error as error:
            yield line, RowError(f"not CSV: {error}")
            continue
        if len(cells) == len(names):
            yield line, {name: cell or None for name, cell in zip(names, cells, strict=True)}
        elif cells:
            yield line, RowError(f"{len(cells)} cells, the header has {len(names)}")
