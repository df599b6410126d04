"""`gems data events` writes what a server stored, and `gems data import` reads it."""

from __future__ import annotations

import asyncio
import json
import subprocess
import sys
from pathlib import Path

import pytest
from support.paths import ROOT

from index.sequence.events import Event, Task
from server.people.interaction import Interaction
from server.people.sqlite_store import SqliteStore
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


@pytest.fixture
def store(tmp_path: Path) -> Path:
    path = tmp_path / "people.db"
    made = SqliteStore(path, Keep())
    made.open()
    asyncio.run(made.append(EVENTS))
    made.close()
    return path


def test_what_is_exported_is_what_was_stored_and_can_be_imported(store: Path, tmp_path: Path) -> None:
    out = tmp_path / "events.jsonl"
    done = gems("data", "events", store, "--out", out)
    assert done.returncode == 0, done.stderr
    assert f"{len(EVENTS)} events" in done.stdout
    rows = [json.loads(line) for line in out.read_text("utf-8").split("\n")[:-1]]
    told = {(row["user_id"], row["item_id"], row["timestamp"], row["query"]) for row in rows}
    assert told == {(each.user_id, each.item_id, each.timestamp, each.query) for each in EVENTS}
    assert len(rows) == len(EVENTS)

    items = tmp_path / "items.jsonl"
    items.write_text(
        "".join(json.dumps({"item_id": f"i{k}", "title": f"Title {k}"}) + "\n" for k in range(3))
    )
    imported = gems("data", "import", "--items", items, "--interactions", out, "--out", tmp_path / "data")
    assert imported.returncode == 0, imported.stderr
    dataset = DataSet.load(tmp_path / "data")
    (history,) = [each for each in dataset.users if each.user_id == "u1"]
    row = dataset.catalogue.row
    assert [event.item for event in history.events] == [row("i1"), row("i2")]
    assert history.events[1] == Event(row("i2") or 0, Task.SEARCH, EVENTS[0].query)


def test_old_events_are_left_out(store: Path, tmp_path: Path) -> None:
    assert "0 events" in gems("data", "events", store, "--out", tmp_path / "o.jsonl", "--days", "1").stdout


def test_what_is_no_store_is_refused_and_nothing_is_written(store: Path, tmp_path: Path) -> None:
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
