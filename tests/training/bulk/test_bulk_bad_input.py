"""Wrong options, files and places of `gems rank`: one clear message at once, and nothing is written."""

from __future__ import annotations

import json
import sys
from pathlib import Path

import polars as pl
import pytest
from support.bundles import make_bundle, make_catalogue
from support.data_sets import small_data_set
from support.file_sizes import files_of_at_most

from index.sequence.events import Event
from server.engine.contract import EngineError
from server.engine.torch_backend.engine import TorchEngine
from training.cli.main import main
from training.data.dataset import DataSet, UserHistory
from training.data.schema import DataInfo


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A bundle without a pool, the data set `data` on its items, and `other` on other items."""
    folder = tmp_path_factory.mktemp("wrong")
    make_bundle(folder / "bundle")
    people = [UserHistory(f"u{k}", (Event(k),), (None,), (0,)) for k in range(40)]
    DataSet(DataInfo("right", "test"), make_catalogue(), people).save(folder / "data")
    small_data_set().save(folder / "other")
    (folder / "users.txt").write_text("u1\nu2\n")
    (folder / "strangers.txt").write_text("somebody\nsomebody else\n")
    (folder / "queries.txt").write_text("golden river\n")
    (folder / "items.txt").write_text("item-1\n")
    (folder / "empty.txt").write_text("")
    pl.DataFrame({"text": ["golden river"]}).write_parquet(folder / "column.parquet")
    (folder / "requests.jsonl").write_text('{"id": 1, "history": []}\n')
    return folder


def run(monkeypatch: pytest.MonkeyPatch, folder: Path, out: Path, *words: str) -> int:
    monkeypatch.chdir(folder)
    monkeypatch.setattr(sys, "argv", ["gems", "rank", "bundle", "--threads=1", f"--out={out}", *words])
    with pytest.raises(SystemExit) as ended:
        main()
    return int(ended.value.code or 0)


@pytest.mark.parametrize(
    ("words", "message"),
    [
        ("", "name what to rank for"),
        ("--data=data", "say for whom of data"),
        ("--data=data --all --users=users.txt", "say for whom of data"),
        ("--data=data --all --queries=queries.txt", "one of"),
        ("--all", "give --data"),
        ("--data=data --all --task=search", "a search needs a query"),
        ("--queries=queries.txt --task=recommendation", "does not fit"),
        ("--data=other --all", "the bundle knows no item of other"),
        ("--data=data --users=strangers.txt", "2 of 2 people are not in data, such as 'somebody'"),
        ("--data=data --users=strangers.txt --missing-ok", "names nobody of data"),
        ("--data=data --users=empty.txt", "names nobody of data"),
        ("--data=data --users=nowhere.txt", "there is no file nowhere.txt"),
        ("--data=data --users=column.parquet", "holds a Parquet file, not user ids"),
        ("--queries=column.parquet", "missing column(s) query; found text"),
        ("--queries=empty.txt", "holds no query"),
        ("--queries=nowhere.jsonl", "there is no file"),
        ("--requests=column.parquet", "missing column(s) id; found text"),
        ("--requests=requests.jsonl", "give --task"),
        ("--data=data --all --filter={", "--filter must be JSON"),
        ("--data=data --all --filter=[1]", "--filter must be a JSON object"),
        ("--data=data --all --filter={\"colour\":\"red\"}", "filter: "),
        ("--data=data --all --filter={\"year\":{\"above\":1}}", "a range takes"),
        ("--data=data --all --ranking=pool", "see 'gems fuse'"),
        ("--data=data --all --min-relevance=0.5", "only items of a ranked pool"),
        ("--data=data --all --exclude=empty.txt", "must name 1 to"),
        ("--data=data --all --limit=0", "limit"),
    ],
)  # fmt: skip
def test_one_message_and_nothing_written(
    words: str,
    message: str,
    folder: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    (tmp_path / "out").write_text("precious")
    assert run(monkeypatch, folder, tmp_path / "out", *words.split()) == 2
    said = capsys.readouterr().err
    assert message in said
    assert "Traceback" not in said
    assert [path.name for path in tmp_path.iterdir()] == ["out"]
    assert (tmp_path / "out").read_text() == "precious"


def test_every_bad_request_is_named(
    folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    good = [{"id": "a", "history": [{"item_id": "item-1"}]}, {"id": 7, "task": "search", "query": "river"}]
    wrong = {
        "'id' must be": {"history": []},
        "already that of another row": {"id": "a"},
        "unknown field 'histroy'": {"id": "b", "histroy": []},
        "'task' must be": {"id": "c", "task": "find"},
        "query: ": {"id": "d", "task": "search", "query": " "},
        "explain": {"id": "e", "explain": True},
        "history.0.item_id: the catalogue holds no such item": {
            "id": "f", "history": [{"item_id": "no"}], "strict": True,
        },
        "limit: ": {"id": "g", "limit": "3"},
        "filter: ": {"id": "h", "filter": {"colour": "red"}},
    }  # fmt: skip
    path = tmp_path / "requests.jsonl"
    path.write_text("".join(json.dumps(row) + "\n" for row in [*good, *wrong.values()]) + "{\n")
    words = (f"--requests={path}", "--task=recommendation", "--limit=2")
    assert run(monkeypatch, folder, tmp_path / "out", *words) == 2
    lines = capsys.readouterr().err.splitlines()
    for number, reason in enumerate(wrong, start=3):
        (line,) = [each for each in lines if f"line {number}: " in each]
        assert reason in line
    assert "line 12: not JSON" in "\n".join(lines)
    assert "10 bad row(s)" in lines[-1]
    assert not (tmp_path / "out").exists()
    assert run(monkeypatch, folder, tmp_path / "out", *words, "--skip-bad") == 0
    assert "10 bad rows of" in capsys.readouterr().out
    assert pl.read_parquet(tmp_path / "out")["id"].to_list() == ["a", "a", "7", "7"]


@pytest.mark.parametrize("place", ["a folder in the way", "a file in the way"])
def test_what_is_in_the_way_stays(
    place: str,
    folder: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    parts = tmp_path / "out.parts"
    if place.startswith("a folder"):
        parts.mkdir()
        (parts / "own.txt").write_text("precious")
    else:
        parts.write_text("precious")
    assert run(monkeypatch, folder, tmp_path / "out", "--data=data", "--all", "--resume") == 2
    (line,) = capsys.readouterr().err.splitlines()
    assert str(parts) in line
    assert (parts / "own.txt" if parts.is_dir() else parts).read_text() == "precious"
    assert [path.name for path in tmp_path.iterdir()] == ["out.parts"]


def test_a_full_disk_and_a_failing_engine_lose_nothing(
    folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    words = ("--data=data", "--all", "--batch-size=4", "--save-seconds=0.01", "--resume")
    assert run(monkeypatch, folder, tmp_path / "whole", *words) == 0
    rank, calls = TorchEngine.rank, 0

    def fails_later(self: TorchEngine, requests: list[object]) -> object:
        nonlocal calls
        calls += 1
        if calls == 4:
            raise EngineError("not enough memory")
        return rank(self, requests)  # type: ignore[arg-type]

    with monkeypatch.context() as patch:
        patch.setattr(TorchEngine, "rank", fails_later)
        capsys.readouterr()
        assert run(patch, folder, tmp_path / "out", *words) == 2
    line = capsys.readouterr().err.splitlines()[-1]
    assert "not enough memory; 12 of 40 requests are done and kept: go on with --resume" in line
    with files_of_at_most(100):
        assert run(monkeypatch, folder, tmp_path / "out", *words) == 2
    line = capsys.readouterr().err.splitlines()[-1]
    assert "File too large" in line
    assert "12 of 40" in line
    assert not (tmp_path / "out").exists()
    assert run(monkeypatch, folder, tmp_path / "out", *words) == 0
    assert (tmp_path / "out").read_bytes() == (tmp_path / "whole").read_bytes()


def test_two_at_once_on_one_output(
    folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    seen: list[int] = []
    rank = TorchEngine.rank

    def and_another(self: TorchEngine, requests: list[object]) -> object:
        if not seen:
            seen.append(0)
            with monkeypatch.context() as patch:
                seen[0] = run(patch, folder, tmp_path / "out", "--data=data", "--all", "--resume")
        return rank(self, requests)  # type: ignore[arg-type]

    monkeypatch.setattr(TorchEngine, "rank", and_another)
    assert run(monkeypatch, folder, tmp_path / "out", "--data=data", "--all") == 0
    assert seen == [2]
    assert "another process works on" in capsys.readouterr().err
