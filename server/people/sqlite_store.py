"""The embedded store: SQLite with a write-ahead log, one thread that writes and a few that read.

The writer commits everything that waits in one transaction (group commit): each commit is synced to disk, and many
requests share the sync. Several processes may use one file on one machine; SQLite's locks keep them apart.
"""

from __future__ import annotations

import asyncio
import logging
import sqlite3
import threading
import time
from collections import deque
from collections.abc import Callable, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import suppress
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

from server.people import sqlite_rows
from server.people.interaction import Appended, Interaction
from server.people.sqlite_file import SHARDS, StoreFile, create_or_check, store_path
from server.people.store import Keep, StoreError, StoreFullError

logger = logging.getLogger("server.people.sqlite_store")

READERS = 4  # threads
MOST_WAITING = 20_000  # events that may wait to be written
MOST_TOGETHER = 5_000  # events of one commit, about
TICK_SECONDS = 1.0  # between two looks for people who were forgotten elsewhere, and for old events
TABLES_EACH_TICK = 1  # searched for old events
CLOSE_SECONDS = 5.0
TRUNCATE_SECONDS = 5.0  # for readers to leave the write-ahead log


@dataclass(slots=True)
class _Work:
    """Something to do in a transaction. events: how many it writes. forgets: whether the log is emptied after it."""

    run: Callable[[sqlite3.Connection], Any]
    events: int
    forgets: bool
    done: Future[Any]


class SqliteStore:
    """A `Store` in one file, and the two that SQLite keeps next to it. `open` it before use.

    path: of the file, in a folder that exists, on a disk of this machine.
    """

    def __init__(self, path: Path, keep: Keep, clock: Callable[[], float] = time.time) -> None:
        self.on_forgotten: Callable[[], None] = lambda: None
        self._path = store_path(str(path))
        self._keep = keep
        self._clock = clock
        self._readers = ThreadPoolExecutor(READERS, "store-reader")
        self._own = threading.local()  # a reader's file
        self._changed = threading.Condition()  # guards what follows
        self._waiting: deque[_Work] = deque()
        self._events_waiting = 0
        self._closing = False
        self._writer = threading.Thread(target=self._write, name="store-writer", daemon=True)

    def open(self) -> None:
        """Make or check the file, and start the writer. Raises `StoreRefusedError`."""
        create_or_check(self._path)
        self._writer.start()

    async def append(self, events: Sequence[Interaction]) -> Appended:
        """Store events; see `Store.append`. Raises `StoreFullError` if too many wait already."""
        run = partial(self._append, list(events))
        done: Appended = await self._submit(_Work(run, len(events), False, Future()))
        return done

    async def history(self, user_id: str) -> list[Interaction]:
        """Return what is kept of a person; see `Store.history`."""
        return await asyncio.wrap_future(self._readers.submit(self._read, user_id))

    async def forget(self, user_id: str) -> int:
        """Remove a person from the file and from its log; see `Store.forget`.

        If a reader of another process keeps the log from being emptied, this raises `StoreError`: nobody reads the
        person's events any more, but the log still holds them until it is called again.
        """
        count: int = await self._submit(
            _Work(partial(sqlite_rows.forget, user_id=user_id), 0, True, Future())
        )
        return count

    def close(self) -> None:
        """Write what waits, and end the threads; a disk that hangs is not waited for longer than `CLOSE_SECONDS`."""
        with self._changed:
            self._closing = True
            self._changed.notify()
        if self._writer.is_alive():
            self._writer.join(CLOSE_SECONDS)
        self._readers.shutdown(wait=False, cancel_futures=True)

    async def _submit(self, work: _Work) -> Any:
        with self._changed:
            if self._closing or not self._writer.is_alive():
                raise StoreError("the store is closed")
            if self._events_waiting + work.events > MOST_WAITING:
                raise StoreFullError("too many events wait to be written")
            self._waiting.append(work)
            self._events_waiting += work.events
            self._changed.notify()
        # Shielded: who leaves does not take back what may be half written.
        return await asyncio.shield(asyncio.wrap_future(work.done))

    def _append(self, events: Sequence[Interaction], db: sqlite3.Connection) -> Appended:
        return sqlite_rows.append(db, events, self._keep, self._clock())

    def _read(self, user_id: str) -> list[Interaction]:
        """Read a person on a thread of the readers, which keeps its connection while the file is in place."""
        file: StoreFile | None = getattr(self._own, "file", None)
        try:
            if file is None:
                file = self._own.file = StoreFile(self._path)
            file.check()
            return sqlite_rows.history(file.db, user_id, self._keep, self._clock())
        except (sqlite3.Error, StoreError) as error:
            if file is not None:
                file.close()
            self._own.file = None
            raise StoreError(str(error)) from error

    def _write(self) -> None:
        """Write until the store is closed and nothing waits."""
        file: StoreFile | None = None
        down = False
        seen: int | None = None
        shard = 0
        next_tick = time.monotonic() + TICK_SECONDS
        while True:
            together = self._take(next_tick - time.monotonic())
            if together is None:
                break
            try:
                if file is None:
                    file = StoreFile(self._path)
                    seen = sqlite_rows.forgotten(file.db) if seen is None else seen
                    if down:
                        logger.info("the store is back")
                        down = False
                if together:
                    self._commit(file, together)
                    seen = (seen or 0) + sum(each.forgets for each in together)
                if time.monotonic() >= next_tick:
                    next_tick = time.monotonic() + TICK_SECONDS
                    shard, seen = self._tick(file, shard, seen or 0)
            except (sqlite3.Error, StoreError) as error:
                if not down:  # once, not every second
                    logger.error("the store is down", extra={"reason": str(error)})
                    down = True
                if file is not None:
                    file.close()
                file = None
                next_tick = max(next_tick, time.monotonic() + TICK_SECONDS)
                self._fail(together, StoreError(str(error)))
            except Exception as error:  # a fault of ours costs this work, not the store
                logger.error("the store failed", exc_info=error)
                self._fail(together, error)
        if file is not None:
            file.close()

    def _take(self, patience: float) -> list[_Work] | None:
        """Wait for work, for `patience` seconds at most. Return what is done in one commit; None at the end."""
        with self._changed:
            self._changed.wait_for(lambda: self._waiting or self._closing, max(0.0, patience))
            if self._closing and not self._waiting:
                return None
            together: list[_Work] = []
            events = 0
            while self._waiting and (not together or events < MOST_TOGETHER):
                work = self._waiting.popleft()
                together.append(work)
                events += work.events
            self._events_waiting -= events
            return together

    def _commit(self, file: StoreFile, together: Sequence[_Work]) -> None:
        """Do work in one transaction; tell about it once it is on disk. Raises without having done any of it."""
        file.check()
        db = file.db
        db.execute("BEGIN IMMEDIATE")
        try:
            results = [each.run(db) for each in together]
            db.execute("COMMIT")
        except BaseException:
            with suppress(sqlite3.Error):
                db.execute("ROLLBACK")
            raise
        emptied = not any(each.forgets for each in together) or _empty_log(db)
        for each, result in zip(together, results, strict=True):
            if each.forgets and not emptied:
                each.done.set_exception(
                    StoreError("another reader keeps the write-ahead log from being emptied")
                )
            else:
                each.done.set_result(result)

    def _fail(self, together: Sequence[_Work], error: Exception) -> None:
        for each in together:
            if not each.done.done():
                each.done.set_exception(error)

    def _tick(self, file: StoreFile, shard: int, seen: int) -> tuple[int, int]:
        """Delete old events of a few tables; notice who was forgotten elsewhere. Return where to go on."""
        file.check()
        if self._keep.seconds:
            for _ in range(TABLES_EACH_TICK):
                sqlite_rows.expire(file.db, shard, self._keep, self._clock())
                shard = (shard + 1) % SHARDS
        count = sqlite_rows.forgotten(file.db)
        if count > seen:
            self.on_forgotten()
        return shard, max(count, seen)


def _empty_log(db: sqlite3.Connection) -> bool:
    """Copy the write-ahead log into the file and cut it to nothing. Return whether that was possible."""
    end = time.monotonic() + TRUNCATE_SECONDS
    while True:
        busy, _, _ = db.execute("PRAGMA wal_checkpoint(TRUNCATE)").fetchone()
        if not busy:
            return True
        if time.monotonic() > end:
            return False
        time.sleep(0.02)
