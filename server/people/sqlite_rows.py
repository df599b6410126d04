"""Reading and changing the rows of the embedded store, within a transaction of the caller."""

from __future__ import annotations

import sqlite3
from collections.abc import Iterator, Sequence

from server.people.interaction import Appended, Interaction, by_person
from server.people.sqlite_file import SHARDS, table, table_of
from server.people.store import Keep

_COLUMNS = "user_id, event_id, item_id, query, time"
_ORDER = "time, arrival"


def append(db: sqlite3.Connection, events: Sequence[Interaction], keep: Keep, now: float) -> Appended:
    """Insert events, and delete the oldest of those who have more than are kept. now: seconds since 1970."""
    done = Appended()
    for user_id, theirs in by_person(events).items():
        done += _append_to(db, user_id, theirs, keep, now)
    return done


def _append_to(
    db: sqlite3.Connection, user_id: str, events: Sequence[Interaction], keep: Keep, now: float
) -> Appended:
    own = table_of(user_id)
    held, newest, arrival = db.execute(
        f"SELECT count(*), max(time), max(arrival) FROM {own} WHERE user_id = ?", (user_id,)
    ).fetchone()
    newest, arrival = newest or 0.0, arrival or 0
    stored: dict[str, float] = {}
    outdated = 0
    for event in events:
        # The clock of the server may run backwards; what comes later stays later.
        moment = max(now, newest) if event.timestamp is None else event.timestamp
        if moment < keep.oldest(now):
            outdated += 1
            continue
        arrival += 1
        row = (user_id, event.event_id, moment, arrival, event.item_id, event.query)
        if db.execute(f"INSERT INTO {own} VALUES (?, ?, ?, ?, ?, ?) ON CONFLICT DO NOTHING", row).rowcount:
            stored[event.event_id] = moment
            newest = max(newest, moment)
    too_many = held + len(stored) - keep.events
    pushed_out = 0
    if too_many > 0:
        oldest = db.execute(
            f"SELECT event_id FROM {own} WHERE user_id = ? ORDER BY {_ORDER} LIMIT ?", (user_id, too_many)
        ).fetchall()
        db.executemany(
            f"DELETE FROM {own} WHERE user_id = ? AND event_id = ?", [(user_id, each) for (each,) in oldest]
        )
        pushed_out = sum(each in stored for (each,) in oldest)
    duplicates = len(events) - outdated - len(stored)
    return Appended(len(stored) - pushed_out, duplicates, outdated + pushed_out)


def history(db: sqlite3.Connection, user_id: str, keep: Keep, now: float) -> list[Interaction]:
    """Return what is kept of a person, oldest first."""
    rows = db.execute(
        f"SELECT {_COLUMNS} FROM {table_of(user_id)} WHERE user_id = ? AND time >= ? ORDER BY {_ORDER}",
        (user_id, keep.oldest(now)),
    ).fetchall()
    return [Interaction(*row) for row in rows[-keep.events :]]


def forget(db: sqlite3.Connection, user_id: str) -> int:
    """Write the table of a person anew without them. Return how many events they had."""
    own = table_of(user_id)
    count = int(db.execute(f"SELECT count(*) FROM {own} WHERE user_id = ?", (user_id,)).fetchone()[0])
    db.execute("UPDATE forgotten SET people = people + 1")
    db.execute(f"CREATE TEMP TABLE others AS SELECT * FROM {own} WHERE user_id != ?", (user_id,))
    db.execute(f"DELETE FROM {own}")  # zeroes every page of the table
    db.execute(f"INSERT INTO {own} SELECT * FROM temp.others")  # which are in order
    db.execute("DROP TABLE temp.others")
    return count


def forgotten(db: sqlite3.Connection) -> int:
    """Return how many people were forgotten so far."""
    return int(db.execute("SELECT people FROM forgotten").fetchone()[0])


def expire(db: sqlite3.Connection, shard: int, keep: Keep, now: float) -> None:
    """Delete the events of a table that are too old to be kept."""
    db.execute(f"DELETE FROM {table(shard)} WHERE time < ?", (keep.oldest(now),))


def everybody(db: sqlite3.Connection, keep: Keep, now: float) -> Iterator[list[Interaction]]:
    """Yield what is kept of all people, table by table; in a table person by person, and oldest first."""
    for shard in range(SHARDS):
        rows = db.execute(
            f"SELECT {_COLUMNS} FROM {table(shard)} WHERE time >= ? ORDER BY user_id, {_ORDER}",
            (keep.oldest(now),),
        ).fetchall()
        yield [Interaction(*row) for row in rows]
