"""Item vectors from a file: they are in the order of the items, or an error names the row."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import polars as pl
import pytest

from training.data.vectors import VectorFileError, read_vectors

IDS = ["a", "7", "c d"]
VECTORS = np.arange(12, dtype=np.float32).reshape(3, 4) / 7


def parquet(path: Path, ids: Sequence[Any], vectors: Any) -> Path:
    pl.DataFrame({"item_id": ids, "vector": [list(map(float, v)) for v in vectors]}).write_parquet(path)
    return path


def npz(path: Path, ids: Sequence[Any], vectors: Any) -> Path:
    np.savez(path, item_id=np.array(ids), vector=np.asarray(vectors))
    return path


def npy(path: Path, vectors: Any) -> Path:
    np.save(path, vectors)
    return path


def test_all_formats_give_each_item_its_vector(tmp_path: Path) -> None:
    order = [2, 0, 1]
    ids, vectors = [IDS[k] for k in order], VECTORS[order]
    files = [
        parquet(tmp_path / "v.parquet", ids, vectors),
        npz(tmp_path / "v.npz", ids, vectors.astype(np.float64)),
        npy(tmp_path / "v.npy", VECTORS),
    ]
    for file in files:
        found = read_vectors(file, IDS)
        assert found.dtype == np.float32
        assert np.array_equal(found, VECTORS)
    numbers = parquet(tmp_path / "n.parquet", [1, 2, 3], VECTORS)  # integers as ids, as items may have them
    assert np.array_equal(read_vectors(numbers, ["3", "2", "1"]), VECTORS[::-1])


holed = VECTORS.copy()
holed[1, 2] = np.nan


@pytest.mark.parametrize(
    ("write", "message"),
    [
        (lambda p: parquet(p / "v.parquet", ["a", "7", "a"], VECTORS), r"row 3: item 'a' has .* in row 1"),
        (lambda p: parquet(p / "v.parquet", ["a", "7", "x"], VECTORS), r"row 3: there is no item 'x'"),
        (lambda p: npz(p / "v.npz", IDS[:2], VECTORS[:2]), r"lacks a vector for item 'c d', row 3 of the items \(1 "),
        (lambda p: npz(p / "v.npz", IDS, holed), r"row 2: the vector of item '7' is not finite \(1 such rows\)"),
        (lambda p: npy(p / "v.npy", holed), r"row 2: the vector of item '7' is not finite"),
        (lambda p: npy(p / "v.npy", np.full((3, 1), 1e300)), r"row 1: the vector of item 'a' is not finite"),
        (lambda p: npy(p / "v.npy", VECTORS[:2]), r"holds 2 vectors for 3 items"),
        (lambda p: npy(p / "v.npy", VECTORS[0]), r"must be a table of numbers .* of shape \(4,\)"),
        (lambda p: npy(p / "v.npy", np.array([["x"]] * 3)), r"must be a table of numbers"),
        (lambda p: parquet(p / "v.parquet", IDS, [[1, 2], [3], [4, 5]]), r"row 2 holds 1 numbers, row 1 holds 2"),
        (lambda p: npz(p / "v.npz", IDS[:2], VECTORS), r"2 item ids for 3 vectors"),
        (lambda p: p / "v.npy", r"there is no file"),
        (lambda p: p / "v.csv", r"must end in \.parquet, \.npz, \.npy"),
    ],
)  # fmt: skip
def test_a_wrong_file_is_refused_by_row(tmp_path: Path, write: Callable[[Path], Path], message: str) -> None:
    with pytest.raises(VectorFileError, match=message):
        read_vectors(write(tmp_path), IDS)


def test_columns_that_are_not_there_and_pickles_are_refused(tmp_path: Path) -> None:
    pl.DataFrame({"id": IDS}).write_parquet(tmp_path / "v.parquet")
    with pytest.raises(VectorFileError, match="lacks the column item_id and vector; it has id"):
        read_vectors(tmp_path / "v.parquet", IDS)
    np.savez(tmp_path / "v.npz", vectors=VECTORS)
    with pytest.raises(VectorFileError, match="lacks the array item_id and vector; it has vectors"):
        read_vectors(tmp_path / "v.npz", IDS)
    np.save(tmp_path / "v.npy", np.array([[object()]] * 3), allow_pickle=True)
    with pytest.raises(VectorFileError, match="cannot be read"):
        read_vectors(tmp_path / "v.npy", IDS)
