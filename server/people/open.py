"""The store that a setting names: Redis by its address, or else a file."""

from __future__ import annotations

from pathlib import Path

from server.people.redis_store import RedisStore
from server.people.sqlite_file import create_or_check, store_path
from server.people.sqlite_store import SqliteStore
from server.people.store import Keep, Store

ADDRESSES = ("redis://", "rediss://", "unix://")


def open_store(setting: str, keep: Keep) -> Store:
    """Return the store, ready to be used. Raises `StoreRefusedError`."""
    store: Store = (
        RedisStore(setting, keep) if setting.startswith(ADDRESSES) else SqliteStore(Path(setting), keep)
    )
    store.open()
    return store


def check_store(setting: str) -> None:
    """Check a file, which is fast: before a server begins its slow imports. Raises `StoreRefusedError`."""
    if not setting.startswith(ADDRESSES):
        create_or_check(store_path(setting))
