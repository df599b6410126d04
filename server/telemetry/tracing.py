"""Records of rankings for traces. Without `GEMS_TRACING=on` there is no listener.

Only `server.telemetry.spans` imports OpenTelemetry, and it is imported only if tracing is on.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from contextlib import AbstractContextManager, contextmanager, nullcontext
from contextvars import ContextVar
from dataclasses import dataclass, field
from typing import Protocol


class TracingError(Exception):
    """Tracing is on but not possible; the message says how to repair it."""


@dataclass(slots=True)
class Account:
    """The record of one ranking.

    seconds: duration of each stage.
    facts: attributes of the span; nothing that a client wrote.
    """

    seconds: Mapping[str, float] = field(default_factory=dict)
    facts: dict[str, str | int] = field(default_factory=dict)

    def tell(self, **facts: str | int) -> None:
        """Add facts to the record."""
        self.facts |= facts


class Listener(Protocol):
    """Receiver of the records of rankings."""

    def ranking(self, task: str, account: Account) -> AbstractContextManager[None]:
        """Return a context manager to run around a ranking; the account is complete when it exits."""
        ...


LISTENER: ContextVar[Listener | None] = ContextVar("listener", default=None)  # for the current request


@contextmanager
def ranking(task: str) -> Iterator[Account]:
    """Run a ranking under the listener, if there is one. The caller fills in the account that it gets."""
    account = Account()
    listener = LISTENER.get()
    with nullcontext() if listener is None else listener.ranking(task, account):
        yield account
