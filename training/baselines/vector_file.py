"""Item vectors on disk: a Parquet file of `item_id` (string) and `vector` (list of float32), one row an item."""

from __future__ import annotations

import os
from pathlib import Path

import numpy as np
import polars as pl
from numpy.typing import NDArray

from index.catalogue import Catalogue
from training.baselines.settings import BaselineError


def save_vectors(path: Path, catalogue: Catalogue, vectors: NDArray[np.float32]) -> None:
    """vectors: float32 [N, D], in the order of the catalogue. All of the file or nothing."""
    frame = pl.DataFrame(
        {
            "item_id": [item.item_id for item in catalogue],
            "vector": pl.Series(vectors.tolist(), dtype=pl.List(pl.Float32)),
        }
    )
    path.parent.mkdir(parents=True, exist_ok=True)
    draft = path.with_name(f".{path.name}.draft")
    frame.write_parquet(draft)
    os.replace(draft, path)


def load_vectors(path: Path, catalogue: Catalogue) -> NDArray[np.float32]:
    """Vectors of the catalogue's items, in its order: float32 [N, D]. Raises `BaselineError`."""
    try:
        frame = pl.read_parquet(path, columns=["item_id", "vector"])
        widths = frame["vector"].list.len().unique()
        if frame["item_id"].n_unique() != len(frame) or len(widths) != 1 or not widths[0]:
            raise BaselineError(f"{path}: every item needs one vector, all of the same length")
        flat = frame["vector"].list.explode().cast(pl.Float32).to_numpy()
    except (OSError, pl.exceptions.PolarsError) as error:
        raise BaselineError(
            f"{path} holds no item vectors; it must be a Parquet file with item_id and vector: {error}"
        ) from error
    rows = {item_id: row for row, item_id in enumerate(frame["item_id"].to_list())}
    missing = [item.item_id for item in catalogue if item.item_id not in rows]
    if missing:
        raise BaselineError(f"{path} has no vector for {len(missing)} items, the first {missing[0]!r}")
    wrong = np.flatnonzero(~np.isfinite(flat.reshape(len(frame), -1)).all(1))
    if len(wrong):
        raise BaselineError(f"{path} row {wrong[0] + 1}: the vector is not finite ({len(wrong)} such rows)")
    vectors = flat.reshape(len(frame), -1)[[rows[item.item_id] for item in catalogue]]
    return np.ascontiguousarray(vectors, dtype=np.float32)
