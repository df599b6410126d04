"""Histories of large logs in files that are mapped into memory: the memory of a training does not grow with the log.

The files lie in `columns/` of the data set. They are made from its other files, and made again when those change.
"""

from __future__ import annotations

import json
from contextlib import suppress
from dataclasses import fields
from pathlib import Path

import numpy as np
import pyarrow as pa

from index.files import atomic_folder
from index.records import read_json
from training.data.histories import Histories
from training.data.schema import INTERACTIONS_FILE, ITEMS_FILE

FOLDER = "columns"
LARGE = 2_000_000  # events; a smaller log is read faster than anybody notices
FORMAT = 1
_KEY = "key.json"
_TEXTS = ("user_ids", "texts")


def read_columns(data: Path) -> Histories | None:
    """Map the histories of a data set. Return None if they are not there, or older than its files."""
    folder = data / FOLDER
    try:
        if read_json(folder / _KEY) != _key(data):
            return None
        columns = {
            field.name: _read_texts(folder / f"{field.name}.arrow")
            if field.name in _TEXTS
            else np.load(folder / f"{field.name}.npy", mmap_mode="r", allow_pickle=False)
            for field in fields(Histories)
        }
    except (OSError, ValueError, pa.ArrowException):
        return None
    return Histories(**columns)


def store_columns(data: Path, histories: Histories) -> Histories:
    """Write the columns of a large log and return the mapped ones; those of a small log are returned as they are.

    data: folder of the data set; if it cannot be written, the histories stay in memory.
    """
    if len(histories.items) < LARGE:
        return histories
    with suppress(OSError):
        write_columns(data, histories)
    return read_columns(data) or histories


def write_columns(data: Path, histories: Histories) -> None:
    """Write the columns beside the other files of a data set. Raises `OSError`."""
    with atomic_folder(data / FOLDER, replace=True) as draft:
        for field in fields(Histories):
            column = getattr(histories, field.name)
            if field.name in _TEXTS:
                _write_texts(draft / f"{field.name}.arrow", column)
            else:
                np.save(draft / f"{field.name}.npy", column, allow_pickle=False)
        (draft / _KEY).write_text(json.dumps(_key(data)), "utf-8")


def _key(data: Path) -> dict[str, object]:
    """Return what changes when the files of a data set change."""
    found: dict[str, object] = {"format": FORMAT}
    for name in (ITEMS_FILE, INTERACTIONS_FILE):
        stat = (data / name).stat()
        found[name] = [stat.st_size, stat.st_mtime_ns]
    return found


def _write_texts(path: Path, texts: pa.LargeStringArray) -> None:
    table = pa.table({"text": texts})
    with pa.OSFile(str(path), "wb") as file, pa.ipc.new_file(file, table.schema) as writer:
        writer.write_table(table, max_chunksize=max(1, len(table)))


def _read_texts(path: Path) -> pa.LargeStringArray:
    column = pa.ipc.open_file(pa.memory_map(str(path))).read_all().column(0)
    return column.chunk(0) if column.num_chunks else pa.array([], pa.large_string())
