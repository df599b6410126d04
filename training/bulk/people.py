"""The people of a data set: each is recommended something after their whole history."""

from __future__ import annotations

import hashlib
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from index.sequence.events import Event, Task
from server.api.requests import HISTORY_CEILING
from server.offline import OfflineReader
from training.bulk.entry import BulkError, Entry
from training.data.dataset import DataSet
from training.data.id_list import as_known, read_lines
from training.run.run_folder import fingerprint


class People:
    """A `Source` of people.

    places: int64 [n], which of the data set's people.
    fields: of every request, besides the history.
    """

    column = "user_id"

    def __init__(
        self, dataset: DataSet, places: NDArray[np.int64], fields: Mapping[str, Any], notes: Sequence[str]
    ) -> None:
        self._ids = dataset.catalogue.item_ids
        self._users = dataset.users
        self._places = places
        self._fields = dict(fields)
        names = hashlib.sha256("\x1f".join(dataset.users.user_ids.take(places).to_pylist()).encode())
        self.sha256 = f"{fingerprint(dataset)}+{names.hexdigest()}"
        cut = int((dataset.users.lengths[places] > HISTORY_CEILING).sum())
        said = f"{cut:,} histories have more than {HISTORY_CEILING:,} events; the newest were used"
        self.notes = [*notes, *([said] if cut else [])]

    def __len__(self) -> int:
        return len(self._places)

    def entries(self, start: int, stop: int) -> list[Entry]:
        """Return the requests for some people, in their order."""
        return [
            Entry(
                self._users.user_id(place),
                Task.RECOMMENDATION,
                {**self._fields, "history": self._history(self._users.events(place))},
            )
            for place in self._places[start:stop].tolist()
        ]

    def _history(self, events: Sequence[Event]) -> list[dict[str, Any]]:
        return [
            {"item_id": self._ids[event.item], "behaviour": event.behaviour.value, "query": event.query}
            for event in events[-HISTORY_CEILING:]
        ]


def read_people(
    data: Path,
    users: Path | None,
    fields: Mapping[str, Any],
    reader: OfflineReader,
    *,
    missing_ok: bool = False,
) -> People:
    """Return the people of a data set.

    users: text file, one `user_id` a line; None for everyone, in the order of the data set.
    missing_ok: whether ids of nobody are passed over.
    Raises `DataError`, and `BulkError` for unknown people and for a data set of other items than the bundle's.
    """
    dataset = DataSet.load(data)
    known = reader.bundle.index.catalogue.row
    if all(known(item_id) is None for item_id in dataset.catalogue.item_ids):
        raise BulkError(f"the bundle knows no item of {data}; give the data set that belongs to it")
    if users is None:
        return People(dataset, np.arange(len(dataset.users)), fields, [])
    by_id = {user_id: place for place, user_id in enumerate(dataset.users.user_ids.to_pylist())}
    lines = read_lines(users, "user ids, one a line")
    wanted = as_known(lines, by_id.__contains__, "user_id")
    missing = [user_id for user_id in dict.fromkeys(wanted) if user_id not in by_id]
    if missing and not missing_ok:
        raise BulkError(
            f"{users}: {len(missing):,} of {len(wanted):,} people are not in {data}, such as {missing[0]!r}; correct "
            "the file, or pass over them with --missing-ok"
        )
    found = [by_id[user_id] for user_id in dict.fromkeys(wanted) if user_id in by_id]
    if not found:
        raise BulkError(f"{users} names nobody of {data}")
    twice = len(wanted) - len(dict.fromkeys(wanted))
    notes = [f"{len(missing):,} people are not in {data}"] if missing else []
    notes += [f"{twice:,} lines of {users} name somebody again"] if twice else []
    return People(dataset, np.array(found), fields, notes)
