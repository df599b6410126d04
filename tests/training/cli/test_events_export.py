"""`gems data events` writes what a server stored, and `gems data import --events` makes a data set of it.

For stores in Redis, a real one of this machine is asked; without it, those tests are skipped.
"""

from __future__ import annotations

import asyncio
import json
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import polars as pl
import pytest
from support.paths import ROOT
from support.redis import PROGRAM, Redis

from index.sequence.events import Event, Task
from server.people.interaction import Interaction
from server.people.open import open_store
from server.people.store import Keep
from training.data.dataset import DataSet

EVENTS = [
    Interaction("u1", "a", "i2", "two\nlines \U0001f600 \u2028", 20.5),
    Interaction("u1", "b", "i1", None, 10.0),
    Interaction("u2", "a", "i1", None, 5.0),
    *(Interaction(f"person {k}", "x", f"i{k % 3}", None, float(k)) for k in range(300)),
]


def gems(*words: str | Path) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, "-m", "training.cli.main", *map(str, words)]
    return subprocess.run(command, cwd=ROOT, capture_output=True, text=True)


@pytest.fixture(scope="module")
def redis_server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Redis]:
    pytest.importorskip("redis", reason="no client of Redis: pip install 'gems-sr[redis]'")
    if PROGRAM is None:
        pytest.skip("no redis-server or valkey-server on this machine")
    started = Redis(tmp_path_factory.mktemp("redis"))
    yield started
    started.kill()


@pytest.fixture(params=["file", "redis"])
def store(request: pytest.FixtureRequest, tmp_path: Path) -> str:
    if request.param == "file":
        setting = str(tmp_path / "people.db")
    else:
        server: Redis = request.getfixturevalue("redis_server")
        server.client.flushall()
        setting = server.url
    made = open_store(setting, Keep())
    asyncio.run(made.append(EVENTS))
    made.close()
    return setting


@pytest.fixture
def items(tmp_path: Path) -> Path:
    path = tmp_path / "items.jsonl"
    path.write_text("".join(json.dumps({"item_id": f"i{k}", "title": f"Title {k}"}) + "\n" for k in range(3)))
    return path


def test_what_is_exported_is_what_was_stored_and_can_be_imported(
    store: str, items: Path, tmp_path: Path
) -> None:
    out = tmp_path / "events.jsonl"
    done = gems("data", "events", store, "--out", out)
    assert done.returncode == 0, done.stderr
    assert f"{len(EVENTS)} events" in done.stdout
    rows = [json.loads(line) for line in out.read_text("utf-8").split("\n")[:-1]]
    told = {(row["user_id"], row["item_id"], row["timestamp"], row["query"]) for row in rows}
    assert told == {(each.user_id, each.item_id, each.timestamp, each.query) for each in EVENTS}
    assert len(rows) == len(EVENTS)

    imported = gems("data", "import", "--items", items, "--interactions", out, "--out", tmp_path / "data")
    assert imported.returncode == 0, imported.stderr
    dataset = DataSet.load(tmp_path / "data")
    (history,) = [each for each in dataset.users if each.user_id == "u1"]
    row = dataset.catalogue.row
    assert [event.item for event in history.events] == [row("i1"), row("i2")]
    assert history.events[1] == Event(row("i2") or 0, Task.SEARCH, EVENTS[0].query)

    # In one step the same comes out, and nothing is left beside it.
    before = set(tmp_path.iterdir())
    at_once = gems("data", "import", "--items", items, "--events", store, "--out", tmp_path / "new" / "data")
    assert at_once.returncode == 0, at_once.stderr
    assert {path.name for path in (tmp_path / "new").iterdir()} == {"data"}
    assert set(tmp_path.iterdir()) == before | {tmp_path / "new"}
    one, other = (
        pl.read_parquet(folder / "data" / "interactions.parquet") for folder in (tmp_path, tmp_path / "new")
    )
    assert one.equals(other)
    source = json.loads((tmp_path / "new" / "data" / "data.json").read_text("utf-8"))["source"]
    named = store.rpartition("/")[2] if "://" not in store else store.replace("redis://", "Redis at ")
    assert source == f"imported from items.jsonl and {named}"


def test_a_log_is_imported_without_torch(items: Path, tmp_path: Path) -> None:
    """It takes seconds to load, and has nothing to do with logs."""
    log = tmp_path / "log.jsonl"
    row = {"user_id": "u", "item_id": "i1", "timestamp": 1, "behaviour": "recommendation"}
    log.write_text(json.dumps(row) + "\n")
    words = ["data", "import", "--items", items, "--interactions", log, "--out", tmp_path / "data"]
    script = (
        "import sys; from training.cli.main import main\n"
        "try: main()\n"
        "finally: print('loaded:', sorted({'torch', 'transformers', 'sklearn'} & set(sys.modules)))"
    )
    done = subprocess.run(
        [sys.executable, "-c", script, *map(str, words)], cwd=ROOT, capture_output=True, text=True
    )
    assert done.returncode == 0, done.stderr
    assert done.stdout.splitlines()[-1] == "loaded: []"


def test_events_of_items_that_are_gone_are_named_by_the_store(
    store: str, items: Path, tmp_path: Path
) -> None:
    items.write_text('{"item_id": "i0", "title": "Title 0"}\n{"item_id": "i2", "title": "Title 2"}\n')
    command = ("data", "import", "--items", items, "--events", store, "--out", tmp_path / "data")
    refused = gems(*command)
    assert refused.returncode == 2
    assert "item 'i1' is not among the items" in refused.stderr
    assert "draft" not in refused.stderr  # a folder that is gone by now
    assert not (tmp_path / "data").exists()
    assert not list(tmp_path.glob(".*.draft"))
    done = gems(*command, "--skip-bad", "--days", "0")
    assert done.returncode == 0, done.stderr
    kept = pl.read_parquet(tmp_path / "data" / "interactions.parquet")
    assert len(kept) == sum(each.item_id != "i1" for each in EVENTS)


def test_old_events_are_left_out(store: str, items: Path, tmp_path: Path) -> None:
    assert "0 events" in gems("data", "events", store, "--out", tmp_path / "o.jsonl", "--days", "1").stdout
    done = gems("data", "import", "--items", items, "--events", store, "--days", "1", "--out", tmp_path / "d")
    assert done.returncode == 2
    assert "no usable row in" in done.stderr


def test_what_is_no_store_is_refused_and_nothing_is_written(tmp_path: Path) -> None:
    out = tmp_path / "out.jsonl"
    (tmp_path / "text").write_text("no database" * 1000)
    (tmp_path / "empty").touch()
    for path, said in (("text", "nor any database"), ("empty", "no store at"), ("missing", "no store at")):
        done = gems("data", "events", tmp_path / path, "--out", out)
        assert done.returncode == 2
        (line,) = done.stderr.splitlines()
        assert said in line
        assert not out.exists()
    assert (tmp_path / "empty").stat().st_size == 0


def test_a_redis_that_is_not_there_or_holds_no_store_is_refused(
    redis_server: Redis, items: Path, tmp_path: Path
) -> None:
    redis_server.client.flushall()
    hidden = redis_server.url.replace("redis://", "redis://user:hidden@")
    for setting, said in (
        (redis_server.url, "no store in this Redis"),
        ("redis://127.0.0.1:1/0", "cannot be read"),
        ("redis://127.0.0.1:port/0", "no address"),
        (hidden, "cannot be read"),
    ):
        command = ("data", "import", "--items", items, "--events", setting, "--out", tmp_path / "data")
        done = gems(*command)
        assert done.returncode == 2
        (line,) = done.stderr.splitlines()
        assert said in line
        assert "hidden" not in line
        assert not (tmp_path / "data").exists()
    assert redis_server.client.dbsize() == 0  # it was only read


def test_a_log_and_a_store_are_not_given_together(items: Path, tmp_path: Path) -> None:
    for both in ((), ("--interactions", items, "--events", "people.db")):
        done = gems("data", "import", "--items", items, "--out", tmp_path / "data", *both)
        assert done.returncode == 2
        assert "--interactions, a file, or --events, a store of people, and not both" in done.stderr
