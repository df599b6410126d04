"""Small data sets for the tests of data and training."""

from __future__ import annotations

from index.catalogue import Catalogue, Item
from index.sequence.events import Event, Task
from training.data.dataset import DataSet
from training.data.histories import UserHistory
from training.data.schema import DataInfo


def small_data_set(lengths: tuple[int, ...] = (1, 2, 3, 5)) -> DataSet:
    """Return users u0, u1, ... with histories of these lengths over ten items; every second event is a search."""
    items = [Item(f"i{n}", f"item {n}", categories=("odd" if n % 2 else "even",)) for n in range(10)]
    users = []
    for user, length in enumerate(lengths):
        rows = [(user * 3 + position) % 10 for position in range(length)]
        events = tuple(
            Event(row, Task.SEARCH, f"find {row}") if position % 2 else Event(row)
            for position, row in enumerate(rows)
        )
        simulated = tuple(None if row == 4 else f"want {row}" for row in rows)
        users.append(UserHistory(f"u{user}", events, simulated, tuple(range(length))))
    return DataSet(DataInfo("small", "made by a test"), Catalogue(items), users)


def same(one: DataSet, other: DataSet) -> bool:
    return one.users == other.users and list(one.catalogue) == list(other.catalogue)
