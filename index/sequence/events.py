"""What a person did: interactions, oldest first."""

from __future__ import annotations

from dataclasses import dataclass
from enum import StrEnum


class Task(StrEnum):
    """The two things the model does; also the behaviour that an interaction shows."""

    SEARCH = "search"
    RECOMMENDATION = "recommendation"


@dataclass(frozen=True, slots=True)
class Event:
    """One interaction of a history: the item's catalogue row and, if it was searched for, the query."""

    item: int
    behaviour: Task = Task.RECOMMENDATION
    query: str | None = None

    def __post_init__(self) -> None:
        if self.behaviour is Task.SEARCH and not (self.query and self.query.strip()):
            raise ValueError("a search event needs a query")
