"""Who is trained on, validated and tested on what."""

from __future__ import annotations

from dataclasses import dataclass

from index.sequence.events import Event
from training.data.dataset import DataSet, UserHistory
from training.data.schema import DataError

LEAVE_ONE_OUT = "leave-one-out"
CHRONOLOGICAL = "chronological"


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
        split.validation.append(_case(user, len(events) - 2))
        split.test.append(_case(user, len(events) - 1))
    return split


def chronological_users(dataset: DataSet) -> Split:
    """Cold-start users: those who came last are tested, and nothing of theirs was trained on.

    Users by the time of their latest event; the first eight tenths are for training, with whole histories, the next
    tenth for validation and the last for testing, each by its last item. Users with a single event are for training
    or left out. Raises `DataError` where time stamps are simulated, or users too few.
    """
    if "timestamp" in dataset.info.simulation:
        raise DataError(
            f"the time stamps of {dataset.info.name!r} are simulated, so its users have no order in time; "
            "use the leave-one-out split"
        )
    users = sorted(dataset.users, key=lambda user: user.timestamps[-1])
    first, second = len(users) * 8 // 10, len(users) * 9 // 10
    validation, test = (
        [_case(user, len(user.events) - 1) for user in part if len(user.events) > 1]
        for part in (users[first:second], users[second:])
    )
    if not validation or not test:
        raise DataError(f"{len(users)} users are too few to be split 8:1:1; use the leave-one-out split")
    return Split([user.events for user in users[:first]], validation, test)


def split_users(dataset: DataSet, users: str) -> Split:
    """The split of this name, `leave-one-out` or `chronological`."""
    return {LEAVE_ONE_OUT: leave_one_out, CHRONOLOGICAL: chronological_users}[users](dataset)


def _case(user: UserHistory, position: int) -> Case:
    query = user.search_query(position)
    return Case(user.user_id, user.events[:position], user.events[position].item, query)
