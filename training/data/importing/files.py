"""Files that a person gives to an import: what they are by their names, and their bytes, unpacked."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from enum import StrEnum
from pathlib import Path
from typing import BinaryIO, cast

from index.contents import contents_of
from training.data.schema import DataError
from training.inputs import LINES, mistaken


class Kind(StrEnum):
    """The formats that can be read."""

    LINES = "JSON Lines"
    CSV = "CSV"
    PARQUET = "a Parquet file"


SUFFIXES = {
    ".jsonl": Kind.LINES,
    ".ndjson": Kind.LINES,
    ".json": Kind.LINES,
    ".csv": Kind.CSV,
    ".tsv": Kind.CSV,
    ".parquet": Kind.PARQUET,
    ".pq": Kind.PARQUET,
}
PACKED = {".gz": "gzip", ".zst": "zstd"}
FITTING = {
    Kind.LINES: LINES,
    Kind.CSV: ("CSV", "text", "nothing (it is empty)"),
    Kind.PARQUET: (Kind.PARQUET,),
}
# What a file of a wrong name holds, and how its name should end.
RENAMED = {
    "CSV": ".csv",
    "gzip data": ".jsonl.gz or .csv.gz",
    "zstd data": ".jsonl.zst or .csv.zst",
    "a Parquet file": ".parquet",
    "JSON Lines": ".jsonl",
}


def packing_of(path: Path) -> str | None:
    """Return the codec that the name of a file says; None for a plain file."""
    return PACKED.get(path.suffix.lower())


def kind_by_name(path: Path) -> Kind | None:
    """Return the format that the name of a file says."""
    name = path.with_suffix("") if packing_of(path) else path
    return SUFFIXES.get(name.suffix.lower())


def kind_of(path: Path) -> Kind:
    """Return the format of a file. Raises `DataError` for an unknown one, and for a file that holds something else."""
    kind, packing = kind_by_name(path), packing_of(path)
    if not path.is_file():
        raise DataError(f"{path} is a folder, not a file" if path.is_dir() else f"there is no file {path}")
    if kind is None or (kind is Kind.PARQUET and packing):
        raise DataError(
            f"{path}: the name must end in .jsonl (JSON Lines), .csv or .parquet, to say what it is; "
            "after .jsonl and .csv, .gz or .zst may follow"
        )
    found = contents_of(path)
    if packing:
        if found != f"{packing} data":
            raise DataError(f"{path} holds {found}, not {packing} data; let its name say what it is")
    elif found not in FITTING[kind]:
        if found in RENAMED:
            raise DataError(f"{path} holds {found}, not {kind}; let its name end in {RENAMED[found]}")
        raise DataError(str(mistaken(path, str(kind), *FITTING[kind])))
    return kind


@contextmanager
def opened(path: Path) -> Iterator[BinaryIO]:
    """Open the bytes of a file, unpacked. A file that ends too early raises `DataError` where it does."""
    import pyarrow as pa  # of the extra train; the names of files are told apart without it

    packing = packing_of(path)
    try:
        with pa.OSFile(str(path), "rb") as file:
            stream = pa.CompressedInputStream(file, packing) if packing else file
            yield cast("BinaryIO", stream)
    except OSError as error:
        hint = "; the file is damaged or was not copied to its end" if packing else ""
        raise DataError(f"{path} cannot be read: {error}{hint}") from error
