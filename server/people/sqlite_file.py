"""The file of the embedded store: opening it, its format, and its tables.

People are spread over `SHARDS` tables of one file by a checksum of their id. A commit covers all of them. To forget a
person the table is written anew: SQLite's `secure_delete` zeroes deleted rows, but not the copies that a split page
leaves behind, and writing a whole file of gigabytes anew takes too long.
"""

from __future__ import annotations

import os
import sqlite3
import stat
import time
import zlib
from contextlib import suppress
from pathlib import Path
from urllib.parse import quote

from server.people.store import StoreError, StoreRefusedError

FORMAT = 1
APPLICATION = int.from_bytes(b"GEMS", "big")  # SQLite's name for the kind of a file
SHARDS = 256
BUSY_SECONDS = 4.0  # for which a connection waits for other processes
STATEMENTS = 2048  # compiled ones that a connection keeps
WAL_PAGES = 8192  # of the write-ahead log, 4 KiB each, after which it is copied into the file

_APPLICATION, _FORMAT = "PRAGMA application_id", "PRAGMA user_version"
_TABLE = """
CREATE TABLE {} (
    user_id TEXT NOT NULL, event_id TEXT NOT NULL, time REAL NOT NULL, arrival INTEGER NOT NULL,
    item_id TEXT NOT NULL, query TEXT, PRIMARY KEY (user_id, event_id)
) WITHOUT ROWID
"""


def store_path(setting: str) -> Path:
    """Return the path of a store behind all links, where SQLite puts the other files."""
    return Path(os.path.realpath(setting))


def table_of(user_id: str) -> str:
    """Return the name of the table that holds a person."""
    return table(zlib.crc32(user_id.encode()) % SHARDS)


def table(shard: int) -> str:
    """Return the name of a table. shard: its number, less than `SHARDS`."""
    return f"event_{shard:03d}"


def create_or_check(path: Path) -> None:
    """Make an empty store at `path`, or check what is there. Raises `StoreRefusedError`."""
    try:
        if path.exists() and not stat.S_ISREG(path.stat().st_mode):
            raise StoreRefusedError(f"{path} is not a file; name a file of an existing folder for the store")
        _refuse_lonely_log(path)
        with suppress(FileExistsError):
            os.close(os.open(path, os.O_CREAT | os.O_EXCL | os.O_RDWR, 0o600))  # nobody else's business
        if not os.access(path, os.R_OK | os.W_OK):
            raise StoreRefusedError(f"{path} may not be read and written by this user")
    except OSError as error:
        raise StoreRefusedError(f"the store {path} cannot be made: {error.strerror}") from error
    try:
        db = _connect(path)
        try:
            _begin(path, db)
        finally:
            db.close()
    except sqlite3.DatabaseError as error:
        if error.sqlite_errorcode == sqlite3.SQLITE_NOTADB:
            raise StoreRefusedError(
                f"{path} is not a store of people, nor any database; name another file"
            ) from error
        raise StoreRefusedError(f"the store {path} cannot be opened: {error}") from error


def _refuse_lonely_log(path: Path) -> None:
    """Raise `StoreRefusedError` for a log without its file: SQLite would delete it with the events in it."""
    log = path.with_name(f"{path.name}-wal")
    if log.exists() and log.stat().st_size and not (path.exists() and path.stat().st_size):
        raise StoreRefusedError(
            f"{log} is the log of a store that is not at {path}: the files of a store belong together. "
            "Put the other one back, or delete the log, which may hold the newest events"
        )


def _begin(path: Path, db: sqlite3.Connection) -> None:
    """Check the format, and make the tables of a new store in one step."""
    application = _number(db, _APPLICATION)
    if application == 0 and not _number(db, "SELECT count(*) FROM sqlite_master"):
        db.execute("BEGIN IMMEDIATE")
        if not _number(db, _APPLICATION):  # no other server was faster
            for shard in range(SHARDS):
                db.execute(_TABLE.format(table(shard)))
            db.execute("CREATE TABLE forgotten (people INTEGER NOT NULL)")
            db.execute("INSERT INTO forgotten VALUES (0)")
            db.execute(f"{_FORMAT} = {FORMAT}")
            db.execute(f"{_APPLICATION} = {APPLICATION}")
        db.execute("COMMIT")
        application = APPLICATION
    if application != APPLICATION:
        raise StoreRefusedError(f"{path} is a database of another program; name another file for the store")
    version = _number(db, _FORMAT)
    if version != FORMAT:
        raise StoreRefusedError(
            f"{path} is a store of format {version}, and this version of the program reads format {FORMAT}: "
            "export it with the version that wrote it ('gems data events'), or name another file"
        )
    _write_ahead(db)


def _write_ahead(db: sqlite3.Connection) -> None:
    """Switch to a write-ahead log. SQLite does not wait by itself while another process does the same."""
    end = time.monotonic() + BUSY_SECONDS
    while True:
        try:
            db.execute("PRAGMA journal_mode = WAL")
            return
        except sqlite3.OperationalError:
            if time.monotonic() > end:
                raise
            time.sleep(0.02)


def _number(db: sqlite3.Connection, statement: str) -> int:
    return int(db.execute(statement).fetchone()[0])


def _connect(path: Path) -> sqlite3.Connection:
    db = sqlite3.connect(
        f"file:{quote(str(path))}?mode=rw",
        uri=True,
        timeout=BUSY_SECONDS,
        isolation_level=None,  # transactions are begun and ended by statements
        check_same_thread=False,  # one thread at a time, but another one closes it
        cached_statements=STATEMENTS,
    )
    db.execute("PRAGMA synchronous = FULL")  # a commit is on disk, also if the machine loses power
    db.execute("PRAGMA secure_delete = ON")
    db.execute("PRAGMA temp_store = MEMORY")  # nothing about people in temporary files
    db.execute(f"PRAGMA wal_autocheckpoint = {WAL_PAGES}")
    return db


class StoreFile:
    """A connection to an existing store, for one thread at a time. It notices if the file is moved or deleted.

    Raises `StoreError`, now and later, while there is no such file at the path.
    """

    def __init__(self, path: Path) -> None:
        self._path = path
        self._identity = self._now_there()
        try:
            self.db = _connect(path)
            if (_number(self.db, _APPLICATION), _number(self.db, _FORMAT)) != (APPLICATION, FORMAT):
                raise StoreError("the file of the store was replaced by another kind of file")
        except sqlite3.Error as error:
            raise StoreError(str(error)) from error

    def check(self) -> None:
        """Raise `StoreError` if what is open is not what is at the path: writes would be lost with it."""
        if self._now_there() != self._identity:
            raise StoreError("the file of the store was replaced")

    def _now_there(self) -> tuple[int, int]:
        try:
            found = os.stat(self._path)
        except OSError as error:
            raise StoreError(f"the file of the store is gone: {error.strerror}") from error
        if not found.st_size:  # SQLite would take it for a new one, and delete the log that lies next to it
            raise StoreError("the file of the store is gone: an empty one is in its place")
        return found.st_dev, found.st_ino

    def close(self) -> None:
        """Close the connection."""
        with suppress(sqlite3.Error):
            self.db.close()
