"""The store as interactions in JSON Lines, which `gems data import` reads."""

from __future__ import annotations

import json
import sqlite3
import time
from collections.abc import Callable
from pathlib import Path

from index.files import atomic_write
from server.people import sqlite_rows
from server.people.interaction import Interaction
from server.people.sqlite_file import SHARDS, StoreFile, create_or_check
from server.people.store import Keep, StoreError, StoreRefusedError


def export(store: Path, out: Path, keep: Keep, on_progress: Callable[[float], None]) -> int:
    """Write what is kept of everybody to `out`, whole or not at all; return the number of events.

    A server may use the store meanwhile. Each person's events are those of one moment, and they lie together, oldest
    first.

    on_progress: called with the share of the store that is done.
    Raises `StoreRefusedError` if there is no store, `StoreError` if it cannot be read, `OSError` of the file `out`.
    """
    if not store.is_file() or not store.stat().st_size:
        raise StoreRefusedError(f"there is no store at {store}; name the file of GEMS_PEOPLE_STORE")
    create_or_check(store)
    file = StoreFile(store)
    count = 0
    try:
        with atomic_write(out) as draft, draft.open("w", encoding="utf-8") as lines:
            for number, events in enumerate(sqlite_rows.everybody(file.db, keep, time.time()), start=1):
                lines.writelines(map(_line, events))
                count += len(events)
                on_progress(number / SHARDS)
    except sqlite3.Error as error:
        raise StoreError(f"the store {store} cannot be read: {error}") from error
    finally:
        file.close()
    return count


def _line(event: Interaction) -> str:
    record = {
        "user_id": event.user_id,
        "item_id": event.item_id,
        "timestamp": event.timestamp,
        "behaviour": "recommendation" if event.query is None else "search",
        "query": event.query,
    }
    return json.dumps(record, ensure_ascii=False) + "\n"
