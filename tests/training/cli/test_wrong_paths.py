"""Paths that hold something else than was meant: one line that says what is there; over all commands and contents."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path
from typing import Any

import numpy as np
import polars as pl
import pytest
from safetensors.torch import save_file
from support.commands import COMMANDS, Command, Parameter
from support.data_sets import small_data_set
from support.paths import ROOT

from gems.model.knowledge import KnowledgeBasis
from index.contents import contents_of
from server.command_line import main as serve
from training.bulk.queries import Queries
from training.bulk.requests import Requests
from training.cli.common.command import one_line_errors, user_errors
from training.cli.common.paths import input_bundle
from training.config import RECIPES, TrainConfig
from training.data.dataset import DataSet
from training.data.id_list import read_lines
from training.data.importing.bad_rows import BadRowsError
from training.data.importing.importer import import_files
from training.data.importing.items import read_items
from training.data.sources.amazon_beauty import amazon_beauty
from training.data.vectors import read_vectors
from training.evaluation.case_ranks import CaseRanks
from training.report.run_log import RunLog
from training.reproduce.systems import load_systems
from training.run.server_process import ServerProcess
from training.sweep.spec import SweepSpec

DATA = {"data", "folder", "beauty", "movielens", "source"}
RUNS = {"run", "baseline"}


def of(choose: Callable[[Parameter], bool]) -> list[Any]:
    found = [(command, each) for command in COMMANDS for each in command.parameters if choose(each)]
    return [pytest.param(command, each, id=f"{command} {each.name}") for command, each in found]


BUNDLE_ARGUMENTS = of(lambda each: getattr(each.info, "callback", None) is input_bundle)
RUN_ARGUMENTS = of(lambda each: each.kind is Path and each.name in RUNS)
DATA_ARGUMENTS = of(lambda each: each.kind is Path and each.name in DATA)


@pytest.fixture(scope="module")
def places(finished: Path, tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    """A folder or a file of each kind that somebody could mix up."""
    folder = tmp_path_factory.mktemp("places")
    (folder / "empty").mkdir()
    (folder / "unfinished").mkdir()
    for name in ("config.yaml", "environment.json"):
        shutil.copy(finished / "run" / name, folder / "unfinished" / name)
    return {
        "bundle": finished / "run" / "bundle",
        "run": finished / "run",
        "unfinished run": folder / "unfinished",
        "data": finished / "data",
        "index version": finished / "run" / "bundle" / "index" / "v1",
        "empty": folder / "empty",
        "file": finished / "ranks.npz",
        "nothing": folder / "nothing",
        "other": ROOT,
    }


def refused(
    command: Command, words: list[str], monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> str:
    """The one line with which a command refuses its arguments."""
    assert command.run(words, monkeypatch) == 2
    (line,) = capsys.readouterr().err.splitlines()
    return line


def check_said(line: str, path: Path) -> None:
    found = contents_of(path)
    assert str(path) in line
    assert (found if path.is_dir() else "there is no" if found == "nothing" else "") in line


@pytest.mark.parametrize(
    "kind", ["unfinished run", "data", "index version", "empty", "file", "nothing", "other"]
)
@pytest.mark.parametrize(("command", "parameter"), BUNDLE_ARGUMENTS)
def test_what_is_no_bundle(
    command: Command,
    parameter: Parameter,
    kind: str,
    places: dict[str, Path],
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    words = command.line(parameter, str(places[kind]), missing=tmp_path / "not there")
    check_said(refused(command, words, monkeypatch, capsys), places[kind])
    assert serve([str(places[kind])]) == 2
    check_said(capsys.readouterr().err, places[kind])


@pytest.mark.parametrize("name", ["bundle verify", "index versions", "index describe"])
def test_a_run_stands_for_its_bundle(
    name: str,
    places: dict[str, Path],
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    command = next(each for each in COMMANDS if each.name == name)
    said = []
    for kind in ("bundle", "run"):
        assert command.run([*name.split(), str(places[kind])], monkeypatch) == 0
        said.append(capsys.readouterr().out)
    assert said[0] == said[1] != ""


@pytest.mark.parametrize("kind", ["bundle", "data", "empty", "file", "nothing", "other"])
@pytest.mark.parametrize(("command", "parameter"), RUN_ARGUMENTS)
def test_what_is_no_run(
    command: Command,
    parameter: Parameter,
    kind: str,
    places: dict[str, Path],
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    given = {"run": places["run"], "data": places["data"], parameter.name: places[kind]}
    words = command.name.split()
    for each in command.parameters:
        if each.name in given and (each.required or each == parameter):
            words += each.words(str(given[each.name]))
    line = refused(command, words, monkeypatch, capsys)
    assert str(places[kind]) in line
    if places[kind].is_dir():
        assert contents_of(places[kind]) in line
    assert ("its run folder may be" in line) == (kind == "bundle" and command.name == "preservation")


@pytest.mark.parametrize("kind", ["bundle", "run", "empty", "file", "nothing", "other"])
@pytest.mark.parametrize(("command", "parameter"), DATA_ARGUMENTS)
def test_what_is_no_data_set(
    command: Command,
    parameter: Parameter,
    kind: str,
    places: dict[str, Path],
    finished: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    others = {
        "bundle": places["bundle"], "bundle_folder": places["bundle"], "run": places["run"],
        "spec": finished / "sweep.yaml", "runs": finished / "ranks.npz", "out": tmp_path / "out",
    }  # fmt: skip
    words = [] if command.name.startswith("bench.") else command.name.split()
    for each in command.parameters:
        if each.name in DATA and (each.required or each == parameter):
            words += each.words(str(places[kind]))
        elif each.required:
            words += each.words(str(others.get(each.name, "4,4")))
    line = refused(command, words, monkeypatch, capsys)
    assert str(places[kind]) in line
    if parameter.name != "source":
        assert "data set" in line
        if places[kind].is_dir():
            assert contents_of(places[kind]) in line
    assert not (tmp_path / "out").exists()


ROWS = [{"item_id": f"i{n}", "title": f"item {n}"} for n in range(3)]
EVENTS = [{"user_id": "u", "item_id": "i1", "timestamp": 1, "behaviour": "recommendation"}]
NO_READER: Any = None  # nothing is asked before the file is known for what it is
TEXT = "".join(json.dumps(row) + "\n" for row in ROWS)


def contents() -> dict[str, Callable[[Path], object]]:
    """Writers of a file of each kind that somebody could mix up."""
    import gzip

    def parquet(path: Path) -> None:
        pl.DataFrame(ROWS).write_parquet(path)

    def array(path: Path) -> None:
        with path.open("wb") as file:
            np.save(file, np.ones((3, 4)))

    return {
        "UTF-16": lambda path: path.write_bytes(TEXT.encode("utf-16")),
        "UTF-16 without mark": lambda path: path.write_bytes(TEXT.encode("utf-16-le")),
        "latin-1": lambda path: path.write_bytes("é: [".encode("latin-1")),
        "gzip": lambda path: path.write_bytes(gzip.compress(TEXT.encode())),
        "binary": lambda path: path.write_bytes(bytes(range(256)) * 9),
        "JSON array": lambda path: path.write_text(json.dumps(ROWS, indent=1)),
        "JSON object": lambda path: path.write_text(json.dumps({"items": ROWS}, indent=1)),
        "JSON Lines": lambda path: path.write_text(TEXT),
        "CSV": lambda path: path.write_text("item_id,title\n" + "1,one\n" * 500),
        "HTML": lambda path: path.write_text("<!doctype html>\n<p>not found</p>\n" * 500),
        "Parquet": parquet,
        "NumPy": array,
        "npz": lambda path: np.savez(path.open("wb"), a=np.ones(3)),
        "half an npz": lambda path: path.write_bytes(b"PK\x03\x04" + b"\x07" * 50),
        "half a Parquet file": lambda path: path.write_bytes(b"PAR1" + b"\x07" * 50),
        "half an array": lambda path: path.write_bytes(b"\x93NUMPY" + b"\x07" * 50),
        "safetensors": lambda path: save_file({"a": __import__("torch").ones(2)}, path),
        "folder": lambda path: path.mkdir(),
        "nothing": lambda path: None,
    }


def reads_items(path: Path) -> None:
    read_items(path)


def reads_interactions(path: Path) -> None:
    items = path.with_name("good items.jsonl")
    items.write_text(TEXT)
    import_files(items, path, "test")


def reads_vectors(path: Path) -> None:
    read_vectors(path, [row["item_id"] for row in ROWS])


def reads_queries(path: Path) -> None:
    Queries.read(path, {}, NO_READER)


def reads_requests(path: Path) -> None:
    Requests.read(path, None, {}, NO_READER)


def reads_amazon(path: Path) -> None:
    item = {"item": 0, "asin": "a", "title": "A", "categories": [["x"]], "queries": ["q"]}
    for name, row in (("items.jsonl", item), ("users.jsonl", {"user": 1, "items": [0]})):
        if path.name != name:
            path.with_name(name).write_text(json.dumps(row) + "\n")
    amazon_beauty(path.parent)


def reads_part_of_data(path: Path) -> None:
    folder = path.parent / "whole"
    small_data_set().save(folder)
    (folder / path.name).unlink()
    if path.exists():
        shutil.move(path, folder / path.name)
    DataSet.load(folder)


# What reads a file of a person, the name of the file, and the contents that are right (or have a line for each row).
READERS: dict[str, tuple[Callable[[Path], object], str, set[str]]] = {
    "items": (reads_items, "items.jsonl", {"JSON Lines"}),
    "items in Parquet": (reads_items, "items.parquet", {"Parquet"}),
    "interactions": (reads_interactions, "interactions.jsonl", {"JSON Lines"}),
    "interactions in Parquet": (reads_interactions, "interactions.parquet", set()),
    "ids to remove": (lambda path: read_lines(path, "item ids"), "gone.txt", set()),
    "queries": (reads_queries, "queries.txt", set()),
    "queries in JSON Lines": (reads_queries, "queries.jsonl", {"JSON Lines"}),
    "requests": (reads_requests, "requests.jsonl", {"JSON Lines"}),
    "requests in Parquet": (reads_requests, "requests.parquet", set()),
    "vectors in Parquet": (reads_vectors, "v.parquet", set()),
    "vectors in npz": (reads_vectors, "v.npz", set()),
    "vectors in npy": (reads_vectors, "v.npy", {"NumPy"}),
    "settings": (lambda path: TrainConfig.load(path, {}), "mine.yaml", set()),
    "sweep": (SweepSpec.load, "sweep.yaml", set()),
    "systems": (load_systems, "systems.yaml", set()),
    "ranks": (CaseRanks.load, "ranks.npz", set()),
    "knowledge basis": (KnowledgeBasis.load, "k.safetensors", set()),
    "Amazon items": (reads_amazon, "items.jsonl", set()),
    "Amazon users": (reads_amazon, "users.jsonl", set()),
    "data set: items": (reads_part_of_data, "items.jsonl", set()),
    "data set: interactions": (reads_part_of_data, "interactions.parquet", set()),
    "data set: data.json": (reads_part_of_data, "data.json", set()),
    "metrics of a run": (lambda path: RunLog.read(path.parent), "metrics.jsonl", set()),
}


@pytest.mark.parametrize("content", contents())
@pytest.mark.parametrize("reader", READERS)
def test_a_file_of_another_kind_is_one_line(
    reader: str, content: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    read, name, right = READERS[reader]
    path = tmp_path / name
    contents()[content](path)
    if content in right:
        with suppress(BadRowsError):
            read(path)
        return
    with pytest.raises(SystemExit) as ended, one_line_errors("gems"):
        read(path)
    assert ended.value.code == 2
    (line,) = capsys.readouterr().err.splitlines()
    assert name in line or tmp_path.name in line or "settings cannot be used: items" in line
    assert len(line) < 700
    assert isinstance(ended.value.__context__, user_errors())


@pytest.mark.parametrize("name", sorted(recipe.stem for recipe in RECIPES.glob("*.yaml")))
def test_the_name_of_a_recipe_is_the_recipe(
    name: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    wanted = TrainConfig.load(name, {})
    monkeypatch.chdir(tmp_path)
    (tmp_path / name).mkdir()
    assert TrainConfig.load(name, {}) == wanted == TrainConfig.load(Path(name), {})
    (tmp_path / name).rmdir()
    (tmp_path / name).write_text("seed: 77")
    assert TrainConfig.load(name, {}) == wanted
    assert TrainConfig.load(f"./{name}", {}).seed == 77
    assert TrainConfig.load(tmp_path / name, {}).seed == 77


@pytest.mark.parametrize("name", ["server", "gems", "index", "training"])
def test_a_folder_named_like_a_package_of_ours_is_not_meant(
    name: str, places: dict[str, Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("PYTHONPATH", str(ROOT))
    (tmp_path / name).mkdir()
    (tmp_path / name / "__init__.py").write_text("raise ImportError('the wrong one')")
    if name == "server":  # the slow way once: the template imports, too
        with ServerProcess(places["bundle"]) as server:
            assert server.post("/recommend", {"limit": 1})["items"]
    program = "import sys; from training.cli.main import main; sys.argv = ['gems', 'serve', '--help']; main()"
    environment = os.environ | {"PYTHONSAFEPATH": "1"}  # as the script `gems`, which stands elsewhere
    done = subprocess.run(
        [sys.executable, "-c", program.replace("--help", "nowhere")],
        env=environment,
        text=True,
        capture_output=True,
    )
    assert done.returncode == 2
    assert done.stderr.startswith("error: there is no folder nowhere")
