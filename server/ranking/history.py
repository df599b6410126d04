"""A history as it was sent, read with the items of one index version."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from index.bundle.bundle import Bundle
from index.sequence.events import Event, Task
from server.api.requests import HistoryEntry


@dataclass(frozen=True, slots=True)
class History:
    """A history, oldest entry first.

    rows: catalogue rows of all known entries.
    events: the newest known entries as events, as many as the encoder may use, without those that it does not read.
    positions: position of each event among the entries.
    unknown: ids that the catalogue does not hold, in the order of the entries.
    new: number of known entries with items newer than the model, which the encoder does not read.
    """

    rows: list[int]
    events: list[Event]
    positions: list[int]
    unknown: list[str]
    new: int

    @classmethod
    def read(cls, entries: Sequence[HistoryEntry], bundle: Bundle, max_query_chars: int) -> History:
        """Look up the items of a history in the bundle's catalogue."""
        known: list[tuple[int, int, HistoryEntry]] = []
        unknown: list[str] = []
        for position, entry in enumerate(entries):
            row = bundle.index.catalogue.row(entry.item_id)
            if row is None:
                unknown.append(entry.item_id)
            else:
                known.append((row, position, entry))
        read = [each for each in known if bundle.encoder.reads(each[0])]
        newest = read[max(0, len(read) - bundle.encoder.max_events) :]
        return cls(
            rows=[row for row, _, _ in known],
            events=[_event(row, entry, max_query_chars) for row, _, entry in newest],
            positions=[position for _, position, _ in newest],
            unknown=unknown,
            new=len(known) - len(read),
        )


def _event(row: int, entry: HistoryEntry, max_query_chars: int) -> Event:
    if entry.query is None or entry.behaviour != "search":
        return Event(row)
    # The encoder cuts queries by tokens; what lies beyond the cap would not be used anyway.
    return Event(row, Task.SEARCH, entry.query.strip()[:max_query_chars])
