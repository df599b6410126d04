"""What the service tells of a ranking, for traces. Nobody listens unless `GEMS_TRACING=on`.

OpenTelemetry is imported by `server.telemetry.spans` alone, and that only where it is wanted.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from contextlib import AbstractContextManager, contextmanager, nullcontext
from contextvars import ContextVar
from dataclasses import dataclass, field
from typing import Protocol


class TracingError(Exception):
    """Traces were asked for and cannot be made; the message says how to mend it."""


@dataclass(slots=True)
class Account:
    """What became known of a ranking. seconds: by stage. facts: figures and names of the server's own; nothing that
    a client wrote."""

    seconds: Mapping[str, float] = field(default_factory=dict)
    facts: dict[str, str | int] = field(default_factory=dict)

    def tell(self, **facts: str | int) -> None:
        self.facts |= facts


class Listener(Protocol):
    def ranking(self, task: str, account: Account) -> AbstractContextManager[None]:
        """Around a ranking; the account is complete at its end."""
        ...


LISTENER: ContextVar[Listener | None] = ContextVar("listener", default=None)  # of the request under way


@contextmanager
def ranking(task: str) -> Iterator[Account]:
    """Around a ranking of a request; its account is to be filled in."""
    account = Account()
    listener = LISTENER.get()
    with nullcontext() if listener is None else listener.ranking(task, account):
        yield account
