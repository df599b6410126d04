"""The embedded store by itself: order, group commits, kills, several processes, and what is wrong with a file."""

from __future__ import annotations

import asyncio
import os
import random
import signal
import sqlite3
import stat
import subprocess
import sys
import threading
from collections.abc import Callable
from contextlib import AbstractContextManager
from pathlib import Path
from typing import TypeVar

import pytest
from support.paths import ROOT
from support.stores import NOW, event, opened_store, run

from server.people import sqlite_store
from server.people.interaction import Appended, Interaction
from server.people.sqlite_file import FORMAT, SHARDS
from server.people.sqlite_store import SqliteStore
from server.people.store import Keep, StoreError, StoreFullError, StoreRefusedError

T = TypeVar("T")
KEEP = Keep()


def opened(
    path: Path, keep: Keep = KEEP, clock: Callable[[], float] = lambda: NOW
) -> AbstractContextManager[SqliteStore]:
    return opened_store(SqliteStore(path, keep, clock))


def test_any_order_of_arrival_gives_what_a_sorted_list_gives(tmp_path: Path) -> None:
    """Random events of a few people, some sent again, some with equal times; the oracle is a stable sort."""
    rng = random.Random(3)
    model: dict[str, dict[str, Interaction]] = {}
    with opened(tmp_path / "s", Keep(10_000)) as store:
        for _ in range(60):
            sent = [
                event(f"u{rng.randrange(5)}", rng.randrange(300), float(rng.randrange(40))) for _ in range(8)
            ]
            done = run(store.append(sent))
            new = 0
            for each in sent:
                theirs = model.setdefault(each.user_id, {})
                new += each.event_id not in theirs
                theirs.setdefault(each.event_id, each)
            assert done == Appended(new, len(sent) - new, 0)
        for user, theirs in model.items():
            expected = sorted(theirs.values(), key=lambda each: each.timestamp or 0)
            assert run(store.history(user)) == expected
        assert run(store.history("nobody")) == []


def test_many_writers_at_once_are_all_answered_for_their_own_events(tmp_path: Path) -> None:
    async def all_at_once(store: SqliteStore) -> list[Appended]:
        return await asyncio.gather(
            *(store.append([event(f"u{k % 7}", k, 1.0), event(f"u{k % 7}", k, 2.0)]) for k in range(200))
        )

    with opened(tmp_path / "s") as store:
        assert run(all_at_once(store)) == [Appended(1, 1, 0)] * 200
        assert sum(len(run(store.history(f"u{k}"))) for k in range(7)) == 200


def test_a_clock_of_the_server_that_runs_backwards_changes_no_order(tmp_path: Path) -> None:
    moments = iter([NOW, NOW - 50, NOW - 100, NOW + 5])
    with opened(tmp_path / "s", clock=lambda: next(moments)) as store:
        for k in range(3):
            run(store.append([event("u", k)]))
        assert [(each.event_id, each.timestamp) for each in run(store.history("u"))] == [
            ("e0", NOW),
            ("e1", NOW),
            ("e2", NOW),
        ]


def test_old_events_are_deleted_from_the_file_in_time(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(sqlite_store, "TICK_SECONDS", 0.02)
    monkeypatch.setattr(sqlite_store, "TABLES_EACH_TICK", SHARDS)
    moment = NOW
    path = tmp_path / "s"
    with opened(path, Keep(100, 60), lambda: moment) as store:
        run(store.append([event("u", 1, NOW - 30), event("u", 2, NOW)]))
        moment = NOW + 45
        assert [each.event_id for each in run(store.history("u"))] == ["e2"]
        reader = sqlite3.connect(path)
        counted = " + ".join(f"(SELECT count(*) FROM event_{k:03d})" for k in range(SHARDS))
        wait_for(lambda: reader.execute(f"SELECT {counted}").fetchone() == (1,))
        reader.close()


def wait_for(condition: Callable[[], bool]) -> None:
    for _ in range(1000):
        if condition():
            return
        threading.Event().wait(0.01)
    raise AssertionError("the awaited condition did not come true")


def test_who_was_forgotten_is_in_no_byte_of_the_files(tmp_path: Path) -> None:
    """Random inserts split pages, which leaves copies of rows: `secure_delete` alone would fail here."""
    rng = random.Random(1)
    path = tmp_path / "s"
    people = 300
    with opened(path, Keep(60)) as store:

        def made(n: int) -> Interaction:
            query = f"asked{n:05d}x" * rng.randrange(1, 12) if rng.random() < 0.5 else None
            name = f"{rng.getrandbits(64):x}-of{n:05d}x"
            return Interaction(f"user{n:05d}x", name, f"item{n:05d}x", query, rng.random() * 1000)

        for _ in range(20):
            run(store.append([made(rng.randrange(people)) for _ in range(1000)]))
        marks = [b"user%05dx", b"item%05dx", b"asked%05dx", b"of%05dx"]
        gone = rng.sample(range(people), 25)
        before = files(path)
        assert all(before.count(mark % n) for n in gone for mark in marks)
        for n in gone:
            assert run(store.forget(f"user{n:05d}x")) > 0
            held = files(path)
            assert not any(held.count(mark % n) for mark in marks), n
        left = set(range(people)) - set(gone)
        assert all(run(store.history(f"user{n:05d}x")) for n in left)


def files(path: Path) -> bytes:
    """The bytes of the file and of those next to it."""
    return b"".join(each.read_bytes() for each in sorted(path.parent.glob(f"{path.name}*")))


def test_a_reader_of_another_process_delays_forgetting_and_the_answer_says_so(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(sqlite_store, "TRUNCATE_SECONDS", 0.1)
    monkeypatch.setattr("server.people.sqlite_file.BUSY_SECONDS", 0.1)
    path = tmp_path / "s"
    with opened(path) as store:
        run(store.append([event("u", 1, 1.0)]))
        reader = sqlite3.connect(path, isolation_level=None)
        reader.execute("BEGIN")
        reader.execute("SELECT * FROM event_000").fetchall()
        with pytest.raises(StoreError, match="log"):
            run(store.forget("u"))
        assert run(store.history("u")) == []
        reader.execute("COMMIT")
        assert run(store.forget("u")) == 0  # now the log is empty, too
        assert (tmp_path / "s-wal").stat().st_size == 0
        reader.close()


WRITER = """
import asyncio, os, sys
from pathlib import Path
from server.people.interaction import Interaction
from server.people.sqlite_store import SqliteStore
from server.people.store import Keep

async def main(path, name, count):
    store = SqliteStore(Path(path), Keep(10**6))
    store.open()
    numbers = iter(range(count))
    async def client():
        for n in numbers:
            await store.append([Interaction(f"u{n % 5}", f"{name}-{n}", "item", None, float(n))])
            os.write(1, f"{name}-{n}\\n".encode())
    await asyncio.gather(*(client() for _ in range(8)))
    store.close()

asyncio.run(main(sys.argv[1], sys.argv[2], int(sys.argv[3])))
"""


def writer(path: Path, name: str, count: int) -> subprocess.Popen[bytes]:
    """A process that stores so many events, and prints the id of each when it is acknowledged."""
    return subprocess.Popen(
        [sys.executable, "-c", WRITER, str(path), name, str(count)], stdout=subprocess.PIPE, cwd=ROOT
    )


def stored(path: Path) -> list[str]:
    with opened(path, Keep(10**6)) as store:
        return [each.event_id for k in range(5) for each in run(store.history(f"u{k}"))]


def test_no_acknowledged_event_is_lost_when_the_writer_is_killed(tmp_path: Path) -> None:
    """The benchmark `bench/people.py` kills a thousand times."""
    path = tmp_path / "s"
    acknowledged: list[str] = []
    for life in range(6):
        process = writer(path, f"life{life}", 10**6)
        assert process.stdout is not None
        seen = process.stdout.readline()
        threading.Event().wait(0.01 * life)
        process.send_signal(signal.SIGKILL)
        seen += process.stdout.read()
        process.wait()
        assert seen.count(b"\n") > 0
        acknowledged += seen.rpartition(b"\n")[0].decode().split("\n")
    found = stored(path)
    assert len(found) == len(set(found))
    assert set(acknowledged) <= set(found)


FULL = """
import resource
resource.setrlimit(resource.RLIMIT_FSIZE, (2 << 20, 2 << 20))  # as a full disk: writes beyond fail
"""


def test_a_full_disk_refuses_events_and_loses_none(tmp_path: Path) -> None:
    path = tmp_path / "s"
    process = subprocess.run(
        [sys.executable, "-c", FULL + WRITER, str(path), "a", "100000"], capture_output=True, cwd=ROOT
    )
    acknowledged = process.stdout.decode().split()
    assert b"StoreError" in process.stderr
    assert 100 < len(acknowledged) < 100_000
    found = stored(path)
    assert len(found) == len(set(found))
    assert set(acknowledged) <= set(found)


def test_two_processes_share_a_file_which_both_begin(tmp_path: Path) -> None:
    path = tmp_path / "s"
    both = [writer(path, name, 150) for name in ("a", "b")]
    said = [process.communicate(timeout=60)[0] for process in both]
    assert [process.returncode for process in both] == [0, 0]
    assert [len(lines.split()) for lines in said] == [150, 150]
    assert sorted(stored(path)) == sorted(f"{name}-{k}" for name in "ab" for k in range(150))


def test_forgetting_in_one_process_is_noticed_in_another(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(sqlite_store, "TICK_SECONDS", 0.02)
    with opened(tmp_path / "s") as one, opened(tmp_path / "s") as other:
        heard: list[str] = []
        one.on_forgotten = lambda: heard.append("one")
        other.on_forgotten = lambda: heard.append("other")
        run(one.append([event("u", 1, 1.0)]))
        run(other.append([event("u", 2, 2.0)]))
        assert run(one.forget("u")) == 2
        wait_for(lambda: bool(heard))
        threading.Event().wait(0.1)
        assert heard == ["other"]


def test_more_than_may_wait_is_refused_at_once(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sqlite_store, "MOST_WAITING", 10)
    path = tmp_path / "s"

    async def too_many(store: SqliteStore) -> list[object]:
        holder = sqlite3.connect(path, isolation_level=None)
        holder.execute("BEGIN IMMEDIATE")
        first = asyncio.create_task(store.append([event("u", 0, 1.0)]))
        await asyncio.sleep(0.2)  # the writer has it, and waits for the lock
        others = [asyncio.create_task(store.append([event("u", k, 1.0)])) for k in range(1, 16)]
        await asyncio.sleep(0.1)
        holder.execute("COMMIT")
        holder.close()
        return await asyncio.gather(first, *others, return_exceptions=True)

    with opened(path) as store:
        found = run(too_many(store))
        assert found[:11] == [Appended(1, 0, 0)] * 11
        assert all(isinstance(each, StoreFullError) for each in found[11:])
        assert len(run(store.history("u"))) == 11


def test_a_store_that_is_moved_away_is_down_until_it_is_back(tmp_path: Path) -> None:
    """Linux would let both connections go on with a file that nobody finds any more."""
    path, away = tmp_path / "s", tmp_path / "away"
    with opened(path) as store:
        run(store.append([event("u", 1, 1.0)]))
        os.rename(path, away)
        with pytest.raises(StoreError, match="gone"):
            run(store.append([event("u", 2, 2.0)]))
        with pytest.raises(StoreError, match="gone"):
            run(store.history("u"))
        path.write_bytes(b"")  # something else in its place
        with pytest.raises(StoreError):
            run(store.append([event("u", 2, 2.0)]))
        assert path.read_bytes() == b""
        with pytest.raises(StoreError):
            run(store.history("u"))
        os.rename(away, path)
        assert run(store.append([event("u", 3, 3.0)])) == Appended(1, 0, 0)
        assert [each.event_id for each in run(store.history("u"))] == ["e1", "e3"]


def test_a_file_is_for_its_owner_alone_and_is_kept(tmp_path: Path) -> None:
    path = tmp_path / "s"
    with opened(path) as store:
        run(store.append([event("u", 1, 1.0)]))
        for each in tmp_path.iterdir():
            assert stat.S_IMODE(each.stat().st_mode) == 0o600
    with opened(path) as store:
        assert [each.event_id for each in run(store.history("u"))] == ["e1"]


def other_format(path: Path) -> None:
    with opened(path):
        pass
    db = sqlite3.connect(path)
    db.execute(f"PRAGMA user_version = {FORMAT + 1}")
    db.close()


def other_program(path: Path) -> None:
    db = sqlite3.connect(path)
    db.execute("CREATE TABLE theirs (a)")
    db.close()


WRONG: list[tuple[Callable[[Path], object], str]] = [
    (lambda path: path.write_bytes(b"no database" * 1000), "is not a store of people, nor any database"),
    (
        other_format,
        f"is a store of format {FORMAT + 1}, and this version of the program reads format {FORMAT}",
    ),
    (other_program, "is a database of another program"),
    (lambda path: path.mkdir(), "is not a file"),
    (lambda path: path.symlink_to(path.parent / "nowhere" / "s"), "cannot be made: No such file"),
]


@pytest.mark.parametrize(("make", "message"), WRONG, ids=[each[1][:30] for each in WRONG])
def test_what_is_no_store_is_refused_and_left_as_it_is(
    tmp_path: Path, make: Callable[[Path], object], message: str
) -> None:
    path = tmp_path / "s"
    make(path)
    before = path.read_bytes() if path.is_file() else None
    with pytest.raises(StoreRefusedError, match=message):
        SqliteStore(path, Keep()).open()
    assert (path.read_bytes() if path.is_file() else None) == before


def test_a_log_without_its_file_is_refused_and_kept(tmp_path: Path) -> None:
    """Whoever moves a store without its log, and starts the server again, loses nothing."""
    path, away = tmp_path / "s", tmp_path / "away"
    process = writer(path, "a", 10**6)
    assert process.stdout is not None
    process.stdout.readline()
    process.kill()
    process.communicate()
    os.rename(path, away)
    for empty in (False, True):
        if empty:
            path.touch()
        with pytest.raises(StoreRefusedError, match="belong together"):
            SqliteStore(path, Keep()).open()
    os.replace(away, path)
    assert stored(path)


def test_a_folder_that_is_missing_is_not_made(tmp_path: Path) -> None:
    with pytest.raises(StoreRefusedError, match="cannot be made: No such file or directory"):
        SqliteStore(tmp_path / "missing" / "s", Keep()).open()
