"""`gems data` on published logs: each command, its switches, bad files, and what a training says of the texts."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest
from rich.console import Console
from support.logs import WRITERS
from support.walks import make_data, settings
from typer.testing import CliRunner, Result

from training.cli.commands.data import data_app
from training.data.dataset import DataSet
from training.pipeline import train

CHINESE = {
    "shoes": "运动鞋子",
    "hat": "太阳帽子",
    "scarf": "冬天围巾",
    "coat": "羊毛大衣",
    "gloves": "皮革手套",
}
SEARCHES = {"qilin": 4, "kuaisar": 2, "jdsearch": 5, "movielens-tags": 2, "amazon-reviews": 5}


def run(*words: object) -> Result:
    return CliRunner().invoke(data_app, [str(word) for word in words])


@pytest.mark.parametrize("log", WRITERS)
def test_a_log_becomes_a_data_set(tmp_path: Path, log: str) -> None:
    source, out = WRITERS[log](tmp_path / "source"), tmp_path / "out"
    done = run(log, "--source", source, "--out", out)
    assert done.exit_code == 0, done.output
    dataset = DataSet.load(out)
    assert dataset.info.name == log
    assert dataset.info.counts["search"] == SEARCHES[log]
    for reason, count in dataset.info.left_out.items():
        assert f"left out: {count:,} {reason}" in done.output
    for note in dataset.info.notes:
        assert note in done.output
    assert ("packaged encoder 'minilm' knows English" in done.output) == (log == "qilin")
    described = run("describe", out)
    assert described.exit_code == 0, described.output
    assert run(log, "--source", source, "--out", out).exception is not None  # it is there already
    assert run(log, "--source", source, "--out", out, "--force").exit_code == 0


@pytest.mark.parametrize("log", WRITERS)
def test_every_filter_is_said_with_what_it_drops(tmp_path: Path, log: str) -> None:
    source, out = WRITERS[log](tmp_path / "source"), tmp_path / "out"
    words = [
        "--both-behaviours",
        "--newest",
        4,
        "--users",
        2,
        "--deduplicate",
        "--catalogue",
        "shown",
        "--seed",
        3,
    ]
    done = run(log, "--source", source, "--out", out, *words)
    assert done.exit_code == 0, done.output
    dataset = DataSet.load(out)
    assert 0 < len(dataset.users) <= 2
    for user in dataset.users:
        assert {event.query is None for event in user.events} == {True, False}
        assert len(user.events) <= 4
    plain = tmp_path / "plain"
    assert run(log, "--source", source, "--out", plain).exit_code == 0
    dropped = sum(n for reason, n in dataset.info.left_out.items() if "(--" in reason)
    assert dataset.info.counts["interactions"] + dropped == DataSet.load(plain).info.counts["interactions"]


def test_a_core_that_leaves_something(tmp_path: Path) -> None:
    source, out = WRITERS["amazon-reviews"](tmp_path / "source"), tmp_path / "out"
    assert run("amazon-reviews", "--source", source, "--out", out, "--core", 2).exit_code == 0
    dataset = DataSet.load(out)
    used = [event.item for user in dataset.users for event in user.events]
    assert min(len(user.events) for user in dataset.users) >= 2
    assert min(used.count(row) for row in range(len(dataset.catalogue))) >= 2


@pytest.mark.parametrize("log", WRITERS)
def test_a_log_that_cannot_be_read_leaves_nothing(tmp_path: Path, log: str) -> None:
    source, out = WRITERS[log](tmp_path / "source"), tmp_path / "out"
    for path in sorted(path for path in source.rglob("*") if path.is_file()):
        whole = path.read_bytes()
        path.write_bytes(
            whole[: len(whole) // 2] if path.suffix in {".gz", ".parquet"} else b"\xff\xfe\x00nonsense"
        )
        failed = run(log, "--source", source, "--out", out)
        assert failed.exit_code != 0, path
        assert type(failed.exception).__name__ in {"DataError", "RowsError"}, (path, failed.exception)
        assert path.name in str(failed.exception) or path.parent.name in str(failed.exception)
        assert not out.exists()
        path.write_bytes(whole)


def test_a_training_says_that_the_encoder_is_english(tmp_path: Path) -> None:
    """It says so before the items are embedded, and trains on."""
    data = make_data(tmp_path / "data", users=12)
    rows = [json.loads(line) for line in (data / "items.jsonl").read_text("utf-8").splitlines()]
    for row in rows:
        row["categories"] = [CHINESE[row["categories"][0]]]
        row["title"] = f"{row['title'].split()[0]} {row['categories'][0]}"
    (data / "items.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows), "utf-8")
    np.save(
        tmp_path / "vectors.npy", np.random.default_rng(0).normal(size=(len(rows), 16)).astype(np.float32)
    )
    own = {"identifiers.vectors": str(tmp_path / "vectors.npy")}
    for changes, expected in (({}, True), (own, False)):
        with (tmp_path / "said.txt").open("w") as file:
            few = settings({"optimiser.epochs": 1, "validation.cases": 4}, changes)
            train(data, tmp_path / f"run {expected}", few, console=Console(file=file, width=1000))
        assert ("packaged encoder 'minilm' knows English" in (tmp_path / "said.txt").read_text()) == expected
