"""The store as interactions in JSON Lines, which `gems data import` reads."""

from __future__ import annotations

import json
import sqlite3
import time
from collections.abc import Callable, Generator
from contextlib import closing
from pathlib import Path

from index.files import atomic_write
from server.people import redis_rows, sqlite_rows
from server.people.interaction import Interaction
from server.people.open import ADDRESSES
from server.people.redis_store import connect
from server.people.sqlite_file import SHARDS, StoreFile, create_or_check
from server.people.store import Keep, StoreError, StoreRefusedError


def export(store: str, out: Path, keep: Keep, on_progress: Callable[[float], None]) -> int:
    """Write what is kept of everybody to `out`, whole or not at all; return the number of events.

    Servers may use the store meanwhile. Each person's events are those of one moment, and they lie together, oldest
    first.

    store: path of a file, or the address of Redis or Valkey.
    on_progress: called with the share of the store that is done.
    Raises `StoreRefusedError` if there is no store, `StoreError` if it cannot be read, `OSError` of the file `out`.
    """
    parts = _of_redis(store, keep) if store.startswith(ADDRESSES) else _of_file(Path(store), keep)
    count = 0
    with closing(parts), atomic_write(out) as draft, draft.open("w", encoding="utf-8") as lines:
        for share, events in parts:
            lines.writelines(map(_line, events))
            count += len(events)
            on_progress(share)
    return count


def _of_file(path: Path, keep: Keep) -> Generator[tuple[float, list[Interaction]]]:
    if not path.is_file() or not path.stat().st_size:
        raise StoreRefusedError(f"there is no store at {path}; name the file of GEMS_PEOPLE_STORE")
    create_or_check(path)
    with closing(StoreFile(path)) as file:
        try:
            for number, events in enumerate(sqlite_rows.everybody(file.db, keep, time.time()), start=1):
                yield number / SHARDS, events
        except sqlite3.Error as error:
            raise StoreError(f"the store {path} cannot be read: {error}") from error


def _of_redis(url: str, keep: Keep) -> Generator[tuple[float, list[Interaction]]]:
    with closing(connect(url)) as client:
        import redis  # `connect` has found it

        try:
            yield from redis_rows.everybody(client, keep, time.time())
        except redis.RedisError as error:
            raise StoreError(f"the store cannot be read: {type(error).__name__}: {error}") from error


def _line(event: Interaction) -> str:
    record = {
        "user_id": event.user_id,
        "item_id": event.item_id,
        "timestamp": event.timestamp,
        "behaviour": "recommendation" if event.query is None else "search",
        "query": event.query,
    }
    return json.dumps(record, ensure_ascii=False) + "\n"
