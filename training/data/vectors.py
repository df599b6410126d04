"""Item vectors of the user, from a file.

`.parquet`: one row for each item, columns `item_id` (string or integer) and `vector` (a list of numbers).
`.npz`: arrays `item_id` [N] and `vector` [N, d].
`.npy`: an array [N, d] in the order of the items.
"""

from __future__ import annotations

import zipfile
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import polars as pl
from numpy.typing import NDArray

from index.files import atomic_write
from training.data.schema import DataError
from training.inputs import mistaken

# What the name says, and what is then in the file.
FORMATS = {
    ".parquet": ("a Parquet file", "a Parquet file"),
    ".npz": ("an .npz archive", "a zip archive"),
    ".npy": ("a NumPy array", "a NumPy array"),
}


class VectorFileError(DataError):
    """The file does not hold one valid vector for each item. The message names the first wrong row."""


def read_vectors(path: Path, item_ids: Sequence[str]) -> NDArray[np.float32]:
    """Return the vectors of these items, float32 [N, d], in their order.

    Raises `VectorFileError` for an item without a vector or with two, for a vector of an unknown item, of another
    length, or with a number that is not finite. Its message counts rows from 1.
    """
    if path.suffix.lower() not in FORMATS:
        raise VectorFileError(f"{path}: the name must end in {', '.join(FORMATS)}, to say what it is")
    meant, kind = FORMATS[path.suffix.lower()]
    if wrong := mistaken(path, f"item vectors in {meant}", kind):
        raise VectorFileError(wrong)
    try:
        ids, vectors = _parquet(path) if path.suffix.lower() == ".parquet" else _arrays(path)
    except (
        OSError, ValueError, TypeError, KeyError, EOFError, zipfile.BadZipFile, pl.exceptions.PolarsError
    ) as error:  # fmt: skip
        raise VectorFileError(f"{path} cannot be read as item vectors: {error}") from error
    if ids is None and len(vectors) != len(item_ids):
        raise VectorFileError(
            f"{path} holds {len(vectors)} vectors for {len(item_ids)} items; a .npy file has one for each, in "
            "their order"
        )
    ids = list(item_ids) if ids is None else ids
    bad = np.flatnonzero(~np.isfinite(vectors).all(axis=1))
    if len(bad):
        raise VectorFileError(
            f"{path} row {bad[0] + 1}: the vector of item {ids[bad[0]]!r} is not finite ({len(bad)} such rows)"
        )
    return vectors[_order(path, ids, item_ids)]


def save_vectors(path: Path, item_ids: Sequence[str], vectors: NDArray[np.float32]) -> None:
    """Write a `.parquet` file: all of it or nothing. vectors: float32 [N, d], in the order of the ids."""
    frame = pl.DataFrame(
        {
            "item_id": list(item_ids),
            "vector": pl.Series(vectors.tolist(), dtype=pl.List(pl.Float32)),
        }
    )
    with atomic_write(path) as draft:
        frame.write_parquet(draft)


def _order(path: Path, ids: Sequence[str], item_ids: Sequence[str]) -> list[int]:
    """Return the row of each item. Raises `VectorFileError` for missing, unknown and repeated items."""
    known = set(item_ids)
    rows: dict[str, int] = {}
    for row, item_id in enumerate(ids):
        first = rows.setdefault(item_id, row)
        if first != row:
            raise VectorFileError(
                f"{path} row {row + 1}: item {item_id!r} has a vector already, in row {first + 1}"
            )
        if item_id not in known:
            raise VectorFileError(f"{path} row {row + 1}: there is no item {item_id!r}")
    missing = [item_id for item_id in item_ids if item_id not in rows]
    if missing:
        raise VectorFileError(
            f"{path} lacks a vector for item {missing[0]!r}, row {item_ids.index(missing[0]) + 1} of the items "
            f"({len(missing)} such items)"
        )
    return [rows[item_id] for item_id in item_ids]


def _parquet(path: Path) -> tuple[list[str], NDArray[np.float32]]:
    frame = pl.read_parquet(path)
    absent = [name for name in ("item_id", "vector") if name not in frame.columns]
    if absent:
        raise ValueError(f"it lacks the column {' and '.join(absent)}; it has {', '.join(frame.columns)}")
    ids, lists = frame["item_id"].cast(pl.String).to_list(), frame["vector"].to_list()
    length = len(lists[0] or ()) if lists else 0
    for row, vector in enumerate(lists, start=1):
        if vector is None or len(vector) != length:
            raise ValueError(f"row {row} holds {len(vector or ())} numbers, row 1 holds {length}")
    return ids, _table(lists)


def _arrays(path: Path) -> tuple[list[str] | None, NDArray[np.float32]]:
    stored = np.load(path, allow_pickle=False)
    if isinstance(stored, np.ndarray):
        return None, _table(stored)
    with stored:
        absent = [name for name in ("item_id", "vector") if name not in stored]
        if absent:
            raise ValueError(f"it lacks the array {' and '.join(absent)}; it has {', '.join(stored)}")
        ids, vectors = [str(item_id) for item_id in stored["item_id"].ravel()], _table(stored["vector"])
    if len(ids) != len(vectors):
        raise ValueError(f"{len(ids)} item ids for {len(vectors)} vectors")
    return ids, vectors


def _table(values: Any) -> NDArray[np.float32]:
    table = np.asarray(values)
    if table.ndim != 2 or 0 in table.shape or table.dtype.kind not in "fiu":
        raise ValueError(
            f"vectors must be a table of numbers [items, dimensions], got {table.dtype} of shape {table.shape}"
        )
    # numbers too large for float32 become infinite, and their row is refused later
    with np.errstate(over="ignore"):
        return table.astype(np.float32)
