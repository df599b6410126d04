"""`gems rank` gives the answers of a real server, item for item, whatever the source and whoever works."""

from __future__ import annotations

import json
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import polars as pl
import pyarrow.parquet as pq
import pytest
from support.bundles import make_bundle, make_catalogue

from index.bundle.bundle import Bundle
from index.catalogue import Item
from index.sequence.events import Event, Task
from training.cli.main import main
from training.data.dataset import DataSet, UserHistory
from training.data.schema import DataInfo
from training.run.server_process import ServerProcess

PEOPLE = 90


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A bundle with a pool, and a data set on its items and one that it does not know; some people know only that."""
    folder = tmp_path_factory.mktemp("bulk")
    make_bundle(folder / "bundle", pool=True)
    catalogue = make_catalogue()
    items = [*catalogue, Item("unknown", "Something else")]
    people = []
    for user in range(PEOPLE):
        rows = [(user * 7 + k * (user % 5 + 1)) % 61 for k in range(user % 12 + 1)]
        events = tuple(
            Event(row, Task.SEARCH, f"golden {row}") if k % 3 == 1 else Event(row)
            for k, row in enumerate(rows if user % 30 else [60])
        )
        people.append(UserHistory(f"u{user}", events, (None,) * len(events), tuple(range(len(events)))))
    DataSet(DataInfo("bulk", "test"), type(catalogue)(items), people).save(folder / "data")
    return folder


@pytest.fixture(scope="module")
def server(folder: Path) -> Iterator[ServerProcess]:
    with ServerProcess(folder / "bundle") as running:
        yield running


def run(monkeypatch: pytest.MonkeyPatch, *words: object) -> int:
    """Run `gems rank` in this process; return its exit code."""
    monkeypatch.setattr(sys, "argv", ["gems", "rank", *map(str, words)])
    with pytest.raises(SystemExit) as ended:
        main()
    return int(ended.value.code or 0)


def histories(folder: Path) -> dict[str, list[dict[str, Any]]]:
    data = DataSet.load(folder / "data")
    ids = data.catalogue.item_ids
    return {
        user.user_id: [
            {"item_id": ids[e.item], "behaviour": e.behaviour.value, "query": e.query} for e in user.events
        ]
        for user in data.users
    }


def assert_same(out: Path, column: str, answers: dict[str, dict[str, Any]]) -> None:
    """Compare a file with the answers of a server, by key."""
    frame = pl.read_parquet(out)
    assert frame.columns == [column, "rank", "item_id", "score", "source", "relevance"]
    assert frame[column].unique(maintain_order=True).to_list() == [
        k for k, a in answers.items() if a["items"]
    ]
    found = frame.partition_by(column, as_dict=True)
    for key, answer in answers.items():
        rows = found[key,].rows(named=True) if answer["items"] else []
        for name in ("rank", "item_id", "source"):
            assert [row[name] for row in rows] == [item[name] for item in answer["items"]], key
        for name in ("score", "relevance"):
            ours, theirs = ([each[name] for each in some] for some in (rows, answer["items"]))
            if None in theirs:
                assert ours == theirs
            else:
                assert ours == pytest.approx(theirs, abs=1e-4)


@pytest.mark.parametrize(
    ("flags", "fields"),
    [
        ([], {}),
        (
            ["--limit=4", "--beam-width=7", "--ranking=beam", "--no-exclude-history"],
            {"limit": 4, "beam_width": 7, "ranking": "beam", "exclude_history": False},
        ),
        (
            ['--filter={"categories": ["Drama", "Horror"], "year": {"lt": 1990}}', "--min-relevance=0.01",
             "--fallback=popularity"],
            {"filter": {"categories": ["Drama", "Horror"], "year": {"lt": 1990}}, "min_relevance": 0.01,
             "fallback": "popularity"},
        ),
    ],
    ids=["defaults", "beam", "filtered"],
)  # fmt: skip
def test_everyone_gets_what_a_server_recommends(
    flags: list[str],
    fields: dict[str, Any],
    folder: Path,
    server: ServerProcess,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    out = tmp_path / "new" / "out.parquet"
    place = (folder / "bundle", "--data", folder / "data", "--all", "--threads=1", "--batch-size=8")
    assert run(monkeypatch, *place, "--out", out, *flags) == 0
    answers = {
        user: server.post("/recommend", {"history": history, **fields})
        for user, history in histories(folder).items()
    }
    assert_same(out, "user_id", answers)
    said = capsys.readouterr().out
    assert f"for {PEOPLE} requests" in said
    assert "3 recommendations have no known item in their history" in said
    unknown = sum(answer["dropped"]["unknown_count"] for answer in answers.values())
    assert f"{unknown} entries of histories name an item that the catalogue does not hold" in said
    assert ("3 answers are by popularity" in said) == ("fallback" in fields)
    metadata = pq.read_schema(out).metadata
    assert metadata[b"gems.bundle_id"].decode() == answers["u0"]["bundle_id"]
    assert metadata[b"gems.index_version"] == b"v1"
    assert list(out.parent.iterdir()) == [out]


def test_some_people_in_their_order(
    folder: Path,
    server: ServerProcess,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    (tmp_path / "users.txt").write_text('user_id\nu7\n"u3"\nu7\nnobody\n')
    (tmp_path / "exclude.txt").write_text("item_id\nitem-1\nitem-2\n")
    (tmp_path / "candidates.txt").write_text("\n".join(f"item-{k}" for k in range(20)) + "\nno such item\n")
    place = (folder / "bundle", "--data", folder / "data", "--threads=1", "--out", tmp_path / "out.parquet")
    lists = ("--exclude", tmp_path / "exclude.txt", "--candidates", tmp_path / "candidates.txt")
    users = ("--users", tmp_path / "users.txt")
    assert run(monkeypatch, *place, *users, *lists) == 2
    assert "1 of 4 people are not in" in capsys.readouterr().err
    assert not (tmp_path / "out.parquet").exists()
    assert run(monkeypatch, *place, *users, *lists, "--missing-ok") == 0
    wanted = histories(folder)
    fields = {
        "exclude": ["item-1", "item-2"],
        "candidates": [*(f"item-{k}" for k in range(20)), "no such item"],
    }
    answers = {user: server.post("/recommend", {"history": wanted[user], **fields}) for user in ("u7", "u3")}
    assert_same(tmp_path / "out.parquet", "user_id", answers)
    said = capsys.readouterr().out
    assert "1 people are not in" in said
    assert "1 lines of" in said
    assert "2 candidates of all requests are not in the catalogue" in said


@pytest.mark.parametrize("kind", ["txt", "jsonl", "parquet"])
def test_queries_are_searched_as_by_a_server(
    kind: str, folder: Path, server: ServerProcess, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    queries = ["golden river", "<|search|> machine", "星", "golden river"]
    path = tmp_path / f"queries.{kind}"
    if kind == "txt":
        path.write_text("\n".join(queries) + "\n\n", "utf-8")
    elif kind == "jsonl":
        path.write_text("".join(json.dumps({"query": each, "count": 3}) + "\n" for each in queries))
    else:
        pl.DataFrame({"query": queries}).write_parquet(path)
    out = tmp_path / "out.parquet"
    assert (
        run(monkeypatch, folder / "bundle", "--queries", path, "--out", out, "--threads=1", "--limit=5") == 0
    )
    answers = {each: server.post("/search", {"query": each, "limit": 5}) for each in dict.fromkeys(queries)}
    assert_same(out, "query", answers)


@pytest.mark.parametrize("kind", ["jsonl", "parquet"])
def test_requests_of_both_tasks(
    kind: str, folder: Path, server: ServerProcess, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    history = [
        {"item_id": "item-3", "behaviour": "recommendation"},
        {"item_id": "no", "behaviour": "recommendation"},
    ]
    rows: list[dict[str, Any]] = [
        {"id": "a", "task": "search", "query": "lost garden", "history": history, "limit": 3},
        {"id": "b", "task": "recommendation", "query": None, "history": history, "limit": None},
        {"id": "c", "task": None, "query": None, "history": [], "limit": 2},
    ]  # fmt: skip
    path = tmp_path / f"requests.{kind}"
    if kind == "jsonl":
        path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    else:
        pl.DataFrame(rows).write_parquet(path)
    out = tmp_path / "out.parquet"
    words = ("--requests", path, "--task=recommendation", "--limit=6", "--threads=1", "--out", out)
    assert run(monkeypatch, folder / "bundle", *words) == 0
    answers = {
        "a": server.post("/search", {"query": "lost garden", "history": history, "limit": 3}),
        "b": server.post("/recommend", {"history": history, "limit": 6}),
        "c": server.post("/recommend", {"limit": 2}),
    }
    assert_same(out, "id", answers)


def test_two_processes_write_the_same_file(
    folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    place = (folder / "bundle", "--data", folder / "data", "--all", "--threads=1", "--batch-size=8")
    for out, more in (("one", ("--save-seconds=0.01",)), ("two", ("--workers=2",)), ("three", ())):
        assert run(monkeypatch, *place, "--out", tmp_path / out, *more) == 0
    contents = {path.read_bytes() for path in tmp_path.iterdir()}
    assert len(contents) == 1


def test_more_than_a_server_allows(folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Caps protect a server; here a person asks for the whole catalogue."""
    monkeypatch.setenv("GEMS_MAX_LIMIT", "20")
    (tmp_path / "users.txt").write_text("u1")
    words = (
        "--users",
        tmp_path / "users.txt",
        "--limit=50",
        "--threads=1",
        "--out",
        tmp_path / "out.parquet",
    )
    assert run(monkeypatch, folder / "bundle", "--data", folder / "data", *words) == 0
    items = pl.read_parquet(tmp_path / "out.parquet")["item_id"]
    assert len(items) == items.n_unique() == 50
    assert set(items) <= set(Bundle.open(folder / "bundle").index.catalogue.item_ids)
