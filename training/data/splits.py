"""Splits of a data set into training, validation and test."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace

import numpy as np
from numpy.typing import NDArray

from index.sequence.events import Event
from training.data.dataset import DataSet
from training.data.histories import Histories, OnDemand
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


@dataclass(frozen=True)
class Stretches(OnDemand[tuple[Event, ...]]):
    """The first events of some people's histories, made when they are looked at.

    people: int64 [n], places in `histories`.
    ends: int64 [n], how many events each has.
    """

    histories: Histories
    people: NDArray[np.int64]
    ends: NDArray[np.int64]

    def __len__(self) -> int:
        return len(self.people)

    def at(self, k: int) -> tuple[Event, ...]:
        """Return the events of the k-th of the people."""
        return self.histories.events(int(self.people[k]), int(self.ends[k]))


@dataclass(frozen=True)
class Cases(OnDemand[Case]):
    """Test cases of some people, made when they are looked at.

    people: int64 [n], places in `histories`.
    positions: int64 [n], the place of each target in its history.
    """

    histories: Histories
    people: NDArray[np.int64]
    positions: NDArray[np.int64]

    def __len__(self) -> int:
        return len(self.people)

    def at(self, k: int) -> Case:
        """Return the k-th case."""
        log, person, position = self.histories, int(self.people[k]), int(self.positions[k])
        target = int(log.items[log.offsets[person] + position])
        query = log.search_query(person, position)
        return Case(log.user_id(person), log.events(person, position), target, query)

    def with_query(self) -> Cases:
        """Return the cases that have a query."""
        asked = self.histories.testable[self.histories.offsets[self.people] + self.positions]
        return replace(self, people=self.people[asked], positions=self.positions[asked])


@dataclass(frozen=True, slots=True)
class Split:
    """Training sequences (one for each user, in the order of the data set), validation cases and test cases."""

    train: Stretches
    validation: Cases
    test: Cases


def takes_again(cases: Sequence[Case]) -> bool:
    """Whether somebody's target is an item of the history: then people take the same things again (groceries)."""
    return any(case.target in {event.item for event in case.history} for case in cases)


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
    lengths = dataset.users.lengths
    held = lengths >= 3
    everyone = np.arange(len(lengths))
    tested = everyone[held]
    return Split(
        Stretches(dataset.users, everyone, np.where(held, lengths - 2, lengths)),
        Cases(dataset.users, tested, lengths[held] - 2),
        Cases(dataset.users, tested, lengths[held] - 1),
    )


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
    lengths = dataset.users.lengths
    latest = dataset.users.timestamps[dataset.users.offsets[1:] - 1]
    users = np.argsort(latest, kind="stable")
    first, second = len(users) * 8 // 10, len(users) * 9 // 10
    validation, test = (
        Cases(dataset.users, part, lengths[part] - 1)
        for part in (held[lengths[held] > 1] for held in (users[first:second], users[second:]))
    )
    if not validation or not test:
        raise DataError(f"{len(users)} users are too few to be split 8:1:1; use the leave-one-out split")
    return Split(Stretches(dataset.users, users[:first], lengths[users[:first]]), validation, test)


def split_users(dataset: DataSet, users: str) -> Split:
    """Split by name. users: `leave-one-out` or `chronological`."""
    return {LEAVE_ONE_OUT: leave_one_out, CHRONOLOGICAL: chronological_users}[users](dataset)
