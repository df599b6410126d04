"""The contract of stores of people, and how they fail.

A store acknowledges an event only when it survives the end of the process (and, for the embedded one, of the machine).
It holds each event of a person once, ordered by timestamp and, where timestamps are equal, by arrival.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Protocol

from server.people.interaction import Appended, Interaction


class StoreRefusedError(Exception):
    """The store cannot be used at all; the message says why, and how to mend it."""


class StoreError(Exception):
    """The store is down: what was asked of it did not happen, or nobody knows whether it did."""


class StoreFullError(StoreError):
    """More events wait to be written than may wait."""


@dataclass(frozen=True, slots=True)
class Keep:
    """Limits of what is kept of a person.

    events: the newest ones that are kept.
    seconds: age, by its timestamp, from which an event is neither read nor kept; 0 for no such age.
    """

    events: int = 1000
    seconds: float = 0.0

    def oldest(self, now: float) -> float:
        """Return the least timestamp that is kept. now: seconds since 1970."""
        return now - self.seconds if self.seconds else 0.0


class Store(Protocol):
    """A store of people. Its methods may be called at the same time; they raise `StoreError` if it is down.

    on_forgotten: called, on any thread, after somebody was forgotten by another process of the same store.
    """

    on_forgotten: Callable[[], None]

    def open(self) -> None:
        """Make the store ready. Raises `StoreRefusedError`."""
        ...

    async def append(self, events: Sequence[Interaction]) -> Appended:
        """Store all these events. What was there already is left as it is.

        If this fails, it may be sent again, whatever of it was stored.
        """
        ...

    async def history(self, user_id: str) -> list[Interaction]:
        """Return what is kept of a person, oldest first; each with its timestamp."""
        ...

    async def forget(self, user_id: str) -> int:
        """Remove everything about a person. Return how many events that was."""
        ...

    def close(self) -> None:
        """Write what waits, and release the store."""
        ...
