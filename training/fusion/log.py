"""The query log of a training: who chose which item for which query."""

from __future__ import annotations

from collections.abc import Iterator

from training.data.dataset import DataSet
from training.data.splits import Split


def searches(dataset: DataSet, split: Split) -> Iterator[tuple[str, str, int]]:
    """Yield (user, query, catalogue row) of each search in the training histories."""
    for user, events in zip(dataset.users, split.train, strict=True):
        for event in events:
            if event.query is not None:
                yield user.user_id, event.query, event.item
