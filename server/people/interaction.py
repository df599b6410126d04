"""One event of one person, as stores take and give it."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass


@dataclass(frozen=True, slots=True)
class Interaction:
    """Something that a person did once.

    event_id: chosen by the client, so that an event may be sent again; unique to the person.
    query: the typed text of a search; None for a recommendation.
    timestamp: seconds since 1970; None for the time at which the store takes it.
    """

    user_id: str
    event_id: str
    item_id: str
    query: str | None = None
    timestamp: float | None = None


@dataclass(frozen=True, slots=True)
class Appended:
    """The number of events by what became of them.

    stored: on disk now. duplicates: there already. outdated: too old to be kept.
    """

    stored: int = 0
    duplicates: int = 0
    outdated: int = 0

    def __add__(self, other: Appended) -> Appended:
        return Appended(
            self.stored + other.stored, self.duplicates + other.duplicates, self.outdated + other.outdated
        )


def by_person(events: Iterable[Interaction]) -> dict[str, list[Interaction]]:
    """Return the events of each person, in the order in which they came."""
    found: dict[str, list[Interaction]] = {}
    for event in events:
        found.setdefault(event.user_id, []).append(event)
    return found
