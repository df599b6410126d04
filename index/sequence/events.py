"""The events of a person's history: interactions, oldest first."""

from __future__ import annotations

from dataclasses import dataclass
from enum import StrEnum


class Task(StrEnum):
    """The two tasks of the model. An interaction has one of them as its behaviour."""

    SEARCH = "search"
    RECOMMENDATION = "recommendation"


@dataclass(frozen=True, slots=True)
class Event:
    """One interaction of a history.

    item: catalogue row.
    query: text of the search; None for a recommendation.
    Raises `ValueError` for a search without a query.
    """

    item: int
    behaviour: Task = Task.RECOMMENDATION
    query: str | None = None

    def __post_init__(self) -> None:
        if self.behaviour is Task.SEARCH and not (self.query and self.query.strip()):
            raise ValueError("a search event needs a query")
