"""Data sets in memory, read from a folder and written to a folder."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable
from dataclasses import dataclass, replace
from pathlib import Path

import polars as pl

from index.catalogue import Catalogue
from index.contents import contents_of
from index.files import atomic_folder
from index.sequence.events import Event, Task
from training.data.schema import (
    INFO_FILE,
    INTERACTIONS_FILE,
    ITEMS_FILE,
    REQUIRED_COLUMNS,
    SIMULATED_QUERY,
    DataError,
    DataInfo,
    is_data_set,
    read_interactions,
    read_items,
)


@dataclass(frozen=True, slots=True)
class UserHistory:
    """The history of one user.

    events: oldest first.
    simulated_queries: the simulated query of each event, or None.
    timestamps: the time stamp of each event.
    Raises `ValueError` if these differ in number.
    """

    user_id: str
    events: tuple[Event, ...]
    simulated_queries: tuple[str | None, ...]
    timestamps: tuple[int | float, ...]

    def __post_init__(self) -> None:
        if not len(self.events) == len(self.simulated_queries) == len(self.timestamps):
            raise ValueError(
                f"user {self.user_id!r}: events, simulated queries and time stamps differ in number"
            )

    def search_query(self, position: int) -> str | None:
        """Return the query for testing an event as search: its own, otherwise the simulated one, otherwise None."""
        return self.events[position].query or self.simulated_queries[position]


class DataSet:
    """A catalogue and the histories of users.

    Raises `DataError` if there is no interaction.
    """

    def __init__(self, info: DataInfo, catalogue: Catalogue, users: Iterable[UserHistory]) -> None:
        self.catalogue = catalogue
        self.users = list(users)
        behaviours = Counter(event.behaviour for user in self.users for event in user.events)
        if not behaviours:
            raise DataError(f"data set {info.name!r} holds no interaction")
        counts = {"users": len(self.users), "items": len(catalogue), "interactions": behaviours.total()}
        self.info = replace(info, counts=counts | {task.value: behaviours[task] for task in Task})

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
        frame = read_interactions(folder / INTERACTIONS_FILE, catalogue)
        return cls(info, catalogue, histories(frame, catalogue))

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

        def moved(event: Event) -> Event:
            row = places[event.item]
            assert row is not None
            return replace(event, item=row)

        users = [replace(user, events=tuple(map(moved, user.events))) for user in self.users]
        return DataSet(self.info, catalogue, users)

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
                self._frame().write_parquet(draft / INTERACTIONS_FILE)
                self.info.save(draft / INFO_FILE)
        except (OSError, pl.exceptions.PolarsError) as error:
            raise DataError(f"cannot write the data set to {folder}: {error}; nothing was changed") from error

    def _frame(self) -> pl.DataFrame:
        ids = self.catalogue.item_ids
        events = [event for user in self.users for event in user.events]
        stamps = [stamp for user in self.users for stamp in user.timestamps]
        whole = all(isinstance(stamp, int) for stamp in stamps)
        return pl.DataFrame(
            {
                "user_id": [user.user_id for user in self.users for _ in user.events],
                "item_id": [ids[event.item] for event in events],
                "timestamp": pl.Series(stamps, dtype=pl.Int64 if whole else pl.Float64, strict=False),
                "behaviour": [event.behaviour.value for event in events],
                "query": pl.Series([event.query for event in events], dtype=pl.String),
                SIMULATED_QUERY: pl.Series(
                    [query for user in self.users for query in user.simulated_queries], dtype=pl.String
                ),
            }
        )


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


def histories(frame: pl.DataFrame, catalogue: Catalogue) -> list[UserHistory]:
    """Return the history of each user, in the order of their first rows; events are ordered by time.

    frame: checked interactions (see `schema`).
    """
    users: dict[str, list[tuple[Event, str | None, int | float]]] = {
        user: [] for user in frame["user_id"].unique(maintain_order=True)
    }
    rows = {item.item_id: row for row, item in enumerate(catalogue)}
    ordered = frame.sort("timestamp", maintain_order=True)
    columns = (*REQUIRED_COLUMNS, SIMULATED_QUERY)
    for user, item_id, stamp, behaviour, query, simulated in zip(
        *(ordered[column].to_list() for column in columns), strict=True
    ):
        task = Task(behaviour)
        event = Event(rows[item_id], task, query if task is Task.SEARCH else None)
        users[user].append((event, simulated, stamp))
    return [UserHistory(user, *map(tuple, zip(*entries, strict=True))) for user, entries in users.items()]
