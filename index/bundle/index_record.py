"""The content of `index.json`: which version of which bundle's items lies in a folder."""

from __future__ import annotations

import json
from dataclasses import asdict, dataclass
from pathlib import Path

from index.records import Record

FILE = "index.json"
MOST_ITEMS = 2**31 - 1  # slots and rows are int32


@dataclass(frozen=True)
class IndexRecord:
    """A version of a bundle's items, as it describes itself.

    version: its name, unique within the bundle.
    created: ISO 8601 time.
    items: number of rows, removed ones included.
    removed: rows of removed items, ascending.
    """

    bundle_id: str
    version: str
    created: str
    items: int
    removed: tuple[int, ...]

    def save(self, folder: Path) -> None:
        """Write `index.json`."""
        (folder / FILE).write_text(json.dumps(asdict(self), indent=2) + "\n", "utf-8")

    @classmethod
    def load(cls, folder: Path) -> IndexRecord:
        """Read `index.json`. Raises `RecordError` for a missing or wrong field."""
        record = Record.read(folder / FILE)
        items = record.whole("items", 1, MOST_ITEMS)
        removed = record.wholes("removed", 0, items - 1)
        return cls(
            record.text("bundle_id"),
            record.text("version"),
            record.time("created"),
            items,
            tuple(sorted(set(removed))),
        )
