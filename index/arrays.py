"""Stored arrays whose every number is checked before it is used as a place in another array; ascending ones."""

from __future__ import annotations

import math
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import DTypeLike, NDArray

from index.files import read_array
from index.records import Record


def read_vector(path: Path, dtype: DTypeLike, length: int | None = None) -> NDArray[Any]:
    """Read a stored vector.

    length: expected number of entries; None: any.
    Raises `ValueError` with the name of the file if it is missing or of another kind.
    """
    vector = read_array(path, np.dtype(dtype).type)
    if length is not None and len(vector) != length:
        raise ValueError(f"{path} must hold {length:,} numbers, not {len(vector):,}")
    return vector


def read_places(path: Path, length: int | None, below: int) -> NDArray[np.int32]:
    """Read places, int32, each at least 0 and less than `below`.

    Raises `ValueError` with the name of the file, as `read_vector` does, or for a place out of bounds.
    """
    places = read_vector(path, np.int32, length)
    if len(places) and (places.min() < 0 or places.max() >= below):
        raise ValueError(f"{path} is damaged: its numbers must lie in 0 … {below - 1:,}")
    return places


def read_offsets(path: Path, ranges: int | None, end: int) -> NDArray[np.int64]:
    """Read the offsets of consecutive ranges: int64 [ranges + 1], ascending from 0 to `end`.

    ranges: expected number of ranges; None: any.
    Raises `ValueError` with the name of the file, as `read_vector` does, or if the ranges are not those.
    """
    offsets = read_vector(path, np.int64, None if ranges is None else ranges + 1)
    if not len(offsets) or offsets[0] != 0 or offsets[-1] != end or (offsets[1:] < offsets[:-1]).any():
        raise ValueError(f"{path} is damaged: its numbers must ascend from 0 to {end:,}")
    return offsets


def read_record(path: Path) -> Record:
    """Read a JSON object. Raises `ValueError` with the name of the file if it is missing or of another form."""
    try:
        return Record.read(path)
    except OSError as error:
        raise ValueError(f"{path} cannot be read: {error}") from error


def read_numbers(path: Path, dtype: DTypeLike, shape: tuple[int, ...]) -> NDArray[Any]:
    """Read a stored array of finite numbers, which was written as a vector.

    Raises `ValueError` with the name of the file.
    """
    numbers = read_vector(path, dtype, math.prod(shape))
    if not np.isfinite(numbers).all():
        raise ValueError(f"{path} is damaged: not all of its numbers are finite")
    return numbers.reshape(shape)
