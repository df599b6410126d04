"""Splits of a data set into training, validation and test."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass

from index.sequence.events import Event
from training.data.dataset import DataSet, UserHistory
from training.data.schema import DataError

LEAVE_ONE_OUT = "leave-one-out"
CHRONOLOGICAL = "chronological"


@dataclass(frozen=True, slots=True)
class Case:
    """A test case: does the model find the target after this history?

    history: events before the target, oldest first.
    target: catalogue row.
    query: the event's own query if it was a search, otherwise the simulated query, otherwise None. Every case is tested
    as recommendation, and a case with a query also as search.
    """

    user_id: str
    history: tuple[Event, ...]
    target: int
    query: str | None


@dataclass(frozen=True, slots=True)
class Split:
    """Training sequences (one for each user, in the order of the data set), validation cases and test cases."""

    train: list[tuple[Event, ...]]
    validation: list[Case]
    test: list[Case]


def searches(histories: Sequence[Sequence[Event]]) -> Iterator[tuple[str, str, int]]:
    """Yield (person, query, catalogue row) of each search. histories: events of each person."""
    for person, history in enumerate(histories):
        for event in history:
            if event.query is not None:
                yield str(person), event.query, event.item


def rows_of(histories: Sequence[Sequence[Event]]) -> Iterator[list[int]]:
    """Yield the catalogue rows of each person's events. histories: events of each person."""
    for history in histories:
        yield [event.item for event in history]


def leave_one_out(dataset: DataSet) -> Split:
    """Split each history: the last event is for test, the event before it for validation, the rest for training.

    Users with fewer than three events are for training only. The history of a test case includes the validation event,
    which is earlier.
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
    """Split the users by time, so that no event of a test user is in the training data (cold-start users).

    Users are ordered by the time of their latest event. The first 80 % are for training, with whole histories, the next
    10 % for validation and the last 10 % for test, each with its last event. A user with a single event is for training
    or left out.
    Raises `DataError` if time stamps are simulated or there are too few users.
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
    """Split by name. users: `leave-one-out` or `chronological`."""
    return {LEAVE_ONE_OUT: leave_one_out, CHRONOLOGICAL: chronological_users}[users](dataset)


def _case(user: UserHistory, position: int) -> Case:
    query = user.search_query(position)
    return Case(user.user_id, user.events[:position], user.events[position].item, query)
