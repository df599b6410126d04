"""Who is trained on, validated and tested on what."""

from __future__ import annotations

from dataclasses import dataclass

from index.history import Event
from training.data.dataset import DataSet


@dataclass(frozen=True, slots=True)
class Case:
    """One question: after this history, does the model find `target` (a catalogue row)?

    Asked as recommendation, and also as search where there is a `query` for it: the event's own if
    it was a search, else the simulated one, else None.
    """

    user_id: str
    history: tuple[Event, ...]
    target: int
    query: str | None


@dataclass(frozen=True, slots=True)
class Split:
    """Training sequences (one per user, in the order of the data set), validation and test cases."""

    train: list[tuple[Event, ...]]
    validation: list[Case]
    test: list[Case]


def leave_one_out(dataset: DataSet) -> Split:
    """Test on each user's last item, validate on the one before it, train on the rest.

    Users with fewer than three interactions are for training only. The history of a test case holds
    the validation event: it happened before.
    """
    split = Split([], [], [])
    for user in dataset.users:
        events = user.events
        if len(events) < 3:
            split.train.append(events)
            continue
        split.train.append(events[:-2])
        for position, cases in ((len(events) - 2, split.validation), (len(events) - 1, split.test)):
            query = user.search_query(position)
            cases.append(Case(user.user_id, events[:position], events[position].item, query))
    return split
