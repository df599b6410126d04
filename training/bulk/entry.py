"""An entry of a bulk ranking, and what holds many of them."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Protocol

from index.sequence.events import Task
from server.api.errors import InvalidRequestError
from server.api.requests import RecommendRequest
from server.offline import OfflineReader, body_of
from training.errors import UserError


class BulkError(UserError):
    """A bulk ranking cannot begin or go on. The message says why."""


@dataclass(frozen=True, slots=True)
class Entry:
    """One request. key: what names it in the output. fields: of the request's body, not yet validated."""

    key: str
    task: Task
    fields: Mapping[str, Any]

    def body(self) -> RecommendRequest:
        """Return the validated body. Raises `InvalidRequestError`."""
        return body_of(self.task, self.fields)


class Source(Protocol):
    """Entries that are ranked, by their places from 0.

    column: name of the output's column of keys.
    sha256: of everything that the entries are made of.
    notes: sentences about what was left out or cut, for the end of the run.
    """

    @property
    def column(self) -> str: ...
    @property
    def sha256(self) -> str: ...
    @property
    def notes(self) -> Sequence[str]: ...

    def __len__(self) -> int: ...

    def entries(self, start: int, stop: int) -> list[Entry]:
        """Return the entries from `start` up to `stop`. Raises `BulkError` if their file changed meanwhile."""
        ...


def check(entry: Entry, reader: OfflineReader) -> str | None:
    """Return why a server would refuse an entry; None if it would not."""
    if entry.fields.get("explain"):
        return "'explain' is for a server: a bulk ranking writes no explanations"
    try:
        reader.read(entry.body())
    except InvalidRequestError as error:
        return told(error)
    return None


def told(error: InvalidRequestError) -> str:
    """Return what is wrong with a request, in one line."""
    wrong = [f"{each.where.removeprefix('body.')}: {each.message}" for each in error.errors]
    return "; ".join(wrong).removeprefix(": ") or error.detail
