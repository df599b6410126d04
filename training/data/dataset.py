"""Data sets in memory, read from a folder and written to a folder."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import replace
from pathlib import Path

import numpy as np
import polars as pl

from index.catalogue import Catalogue
from index.contents import contents_of
from index.files import atomic_folder
from index.sequence.events import Task
from training.data.columns import LARGE, read_columns, store_columns, write_columns
from training.data.histories import NONE, Histories, UserHistory
from training.data.interactions import read_interactions, write_interactions
from training.data.schema import (
    INFO_FILE,
    INTERACTIONS_FILE,
    ITEMS_FILE,
    DataError,
    DataInfo,
    is_data_set,
    read_items,
)


class DataSet:
    """A catalogue and the histories of users.

    Raises `DataError` if there is no interaction.
    """

    def __init__(self, info: DataInfo, catalogue: Catalogue, users: Iterable[UserHistory]) -> None:
        self.catalogue = catalogue
        self.users = users if isinstance(users, Histories) else Histories.of(users)
        events = len(self.users.items)
        if not events:
            raise DataError(f"data set {info.name!r} holds no interaction")
        searches = int((self.users.queries != NONE).sum())
        counts = {"users": len(self.users), "items": len(catalogue), "interactions": events}
        counts |= {Task.SEARCH.value: searches, Task.RECOMMENDATION.value: events - searches}
        self.info = replace(info, counts=counts)

    @classmethod
    def load(cls, folder: Path | str) -> DataSet:
        """Read a data set folder. Raises `DataError` with the file, the row and the reason."""
        folder = Path(folder)
        if not folder.is_dir():
            why = "it is a file" if folder.exists() else "there is no such folder"
            raise DataError(f"no data set at {folder}: {why}; make one with 'gems data'")
        missing = [
            name for name in (INFO_FILE, ITEMS_FILE, INTERACTIONS_FILE) if not (folder / name).is_file()
        ]
        if missing:
            raise DataError(
                f"{folder} is {contents_of(folder)}, not a data set: missing {', '.join(missing)}; make one with "
                "'gems data'"
            )
        info = DataInfo.load(folder / INFO_FILE)
        catalogue = read_items(folder / ITEMS_FILE)
        users = read_columns(folder)
        if users is None:
            users = store_columns(folder, read_interactions(folder / INTERACTIONS_FILE, catalogue))
        return cls(info, catalogue, users)

    def on(self, catalogue: Catalogue) -> DataSet:
        """Return the same histories on another catalogue that holds all items of this one, in whatever order.

        Raises `DataError` that names what is missing.
        """
        places = [catalogue.row(item_id) for item_id in self.catalogue.item_ids]
        missing = [
            item_id for item_id, row in zip(self.catalogue.item_ids, places, strict=True) if row is None
        ]
        if missing:
            raise DataError(
                f"{len(missing):,} of its {len(places):,} items are missing, such as {missing[0]!r}"
            )

        rows = np.array(places, np.int32)
        return DataSet(self.info, catalogue, self.users.on(rows))

    def save(self, folder: Path | str, force: bool = False) -> None:
        """Write the data set to a folder: all of it or nothing.

        folder: missing or empty, or another data set.
        force: whether another data set may be replaced.
        Raises `DataError` for any other folder, and if the disk is full.
        """
        folder = Path(folder).resolve()  # a link stays a link; the folder behind it is replaced
        check_writable(folder, force)
        try:
            with atomic_folder(folder, replace=True) as draft:
                self.catalogue.save(draft / ITEMS_FILE)
                write_interactions(self.users, self.catalogue.item_ids, draft / INTERACTIONS_FILE)
                self.info.save(draft / INFO_FILE)
                if len(self.users.items) >= LARGE:
                    write_columns(draft, self.users)
        except (OSError, pl.exceptions.PolarsError) as error:
            raise DataError(f"cannot write the data set to {folder}: {error}; nothing was changed") from error


def check_writable(folder: Path, force: bool) -> None:
    """Raise `DataError` if a data set must not be written there. Call it before long work."""
    if folder.exists() and not folder.is_dir():
        raise DataError(
            f"cannot write the data set to {folder}: it is a file, not a folder; choose another --out"
        )
    if not folder.exists() or not any(folder.iterdir()):
        return
    if not is_data_set(folder):
        raise DataError(
            f"{folder} is {contents_of(folder)}, not a data set, so it stays; choose another --out"
        )
    if not force:
        raise DataError(
            f"{folder} already holds a data set; give --force to replace it, or choose another --out"
        )
