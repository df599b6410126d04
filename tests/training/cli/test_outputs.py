"""Places that a command writes to: tried before it begins, whole or not at all; over all commands and options."""

from __future__ import annotations

import json
import os
from collections.abc import Callable
from pathlib import Path

import pytest
from support.commands import COMMANDS, Command, Parameter
from support.file_sizes import files_of_at_most

from training.cli.common.paths import input_bundle, output_bundle, output_file, output_folder
from training.outputs import OutputError, check_output, write_json

OUTPUTS = (output_file, output_folder, output_bundle)
# Paths that are read. A new path of a command belongs here, or is tried.
INPUTS = {
    "data", "config", "spec", "items", "interactions", "remove", "vectors", "source", "folder", "runs", "run",
    "baseline", "language_vectors", "identifiers__vectors", "knowledge__basis", "knowledge__histories", "beauty",
    "movielens", "item_vectors", "bundle", "backbone", "store", "users", "queries", "requests", "exclude", "candidates",
    "table",
}  # fmt: skip
WRITING = [
    (command, parameter)
    for command in COMMANDS
    for parameter in command.parameters
    if getattr(parameter.info, "callback", None) in OUTPUTS
]
IDS = [f"{command} {parameter.flag}" for command, parameter in WRITING]


def in_a_file(folder: Path, kind: Callable[..., object]) -> Path:
    (folder / "file").write_text("text")
    return folder / "file" / "inner" / "out"


def nowhere(folder: Path, kind: Callable[..., object]) -> Path:
    return Path("/proc/nowhere/out")  # nobody may make anything there, not even root


def of_the_other_kind(folder: Path, kind: Callable[..., object]) -> Path:
    (folder / "it").mkdir() if kind is output_file else (folder / "it").write_text("text")
    return folder / "it"


def too_long(folder: Path, kind: Callable[..., object]) -> Path:
    return folder / ("x" * 300)


def no_file(folder: Path, kind: Callable[..., object]) -> Path:
    return Path("/dev/null")


def in_a_bundle(folder: Path, kind: Callable[..., object]) -> Path:
    (folder / "bundle.json").write_text("{}")
    return folder / "out"


def unwritable(folder: Path, kind: Callable[..., object]) -> Path:
    if os.getuid() == 0:
        pytest.skip("root may write everywhere")
    (folder / "kept").mkdir(mode=0o500)
    return folder / "kept" / "out"


PLACES = (in_a_file, nowhere, of_the_other_kind, too_long, no_file, in_a_bundle, unwritable)


def test_every_path_is_read_or_tried() -> None:
    for command in COMMANDS:
        for parameter in command.parameters:
            if parameter.kind is Path:
                tried = getattr(parameter.info, "callback", None) in OUTPUTS
                read = parameter.name in INPUTS or parameter.info.callback is input_bundle
                assert tried != read, f"{command}: {parameter.name}"
            else:
                assert parameter.name not in ("json_file", "out", "report"), f"{command}: {parameter.name}"
    assert len(WRITING) > 25


@pytest.mark.parametrize("place", PLACES, ids=lambda place: place.__name__)
@pytest.mark.parametrize(("command", "parameter"), WRITING, ids=IDS)
def test_a_bad_place_is_one_line_before_anything_is_read(
    command: Command,
    parameter: Parameter,
    place: Callable[..., Path],
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    path = place(tmp_path, parameter.info.callback)
    before = sorted(tmp_path.rglob("*"))
    words = command.line(parameter, str(path), missing=tmp_path.parent / "not there")
    assert command.run(words, monkeypatch) == 2
    (line,) = capsys.readouterr().err.splitlines()  # the other paths are wrong, too, but come later
    assert str(path) in line
    assert "choose another" in line
    assert sorted(tmp_path.rglob("*")) == before


@pytest.mark.parametrize(("command", "parameter"), WRITING, ids=IDS)
def test_a_trial_leaves_everything_as_it_was(
    command: Command,
    parameter: Parameter,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    """A place that is fine, in a command that fails afterwards."""
    if not any(each.required and each.kind is Path and each != parameter for each in command.parameters):
        pytest.skip("needs nothing that could be missing: it would begin")
    fresh, kept = tmp_path / "new" / "folders" / "out", tmp_path / "kept"
    if parameter.info.callback is output_file:
        kept.write_text("precious")
    else:
        kept.mkdir()
    stamp = kept.stat().st_mtime_ns
    for path in (fresh, kept):
        words = command.line(parameter, str(path), missing=tmp_path / "not there")
        assert command.run(words, monkeypatch) == 2
        (line,) = capsys.readouterr().err.splitlines()
        assert "not there" in line
    assert sorted(tmp_path.rglob("*")) == [kept]
    assert kept.is_dir() or kept.read_text() == "precious"
    assert parameter.info.callback is output_folder or kept.stat().st_mtime_ns == stamp


@pytest.mark.parametrize(
    ("name", "flag"),
    [("evaluate", "--json"), ("evaluate", "--ranks"), ("index describe", "--json"), ("compare", "--json"),
     ("report", "--out"), ("data import", "--out")],
)  # fmt: skip
@pytest.mark.parametrize("old", [None, "old"])
def test_a_disk_that_is_full_at_the_end_is_one_line(
    name: str,
    flag: str,
    old: str | None,
    finished: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    command = next(each for each in COMMANDS if each.name == name)
    data, run, out = finished / "data", finished / "run", tmp_path / "out"
    arguments = {
        "evaluate": [str(run), f"--data={data}", "--cases=10", "--threads=1"],
        "index describe": [str(run / "bundle")],
        "compare": [str(finished / "ranks.npz")],
        "report": [str(run)],
        "data import": [f"--items={data / 'items.jsonl'}", f"--interactions={data / 'interactions.parquet'}"],
    }[name]
    if old is not None and name != "data import":
        out.write_text(old)
    with files_of_at_most(100):
        assert command.run([*name.split(), *arguments, f"{flag}={out}"], monkeypatch) == 2
    line = capsys.readouterr().err.splitlines()[-1]
    assert "File too large" in line
    assert str(out) in line
    assert out.exists() == (old is not None and name != "data import")
    assert not out.exists() or out.read_text() == old
    assert sorted(tmp_path.iterdir()) == ([out] if out.exists() else [])


def test_what_is_written_is_whole_or_old(tmp_path: Path) -> None:
    write_json(tmp_path / "new" / "a.json", {"a": "é"})
    assert json.loads((tmp_path / "new" / "a.json").read_text("utf-8")) == {"a": "é"}
    with files_of_at_most(10), pytest.raises(OutputError, match="it is as it was before"):
        write_json(tmp_path / "new" / "a.json", {"a": "b" * 100})
    assert json.loads((tmp_path / "new" / "a.json").read_text("utf-8")) == {"a": "é"}
    assert [path.name for path in (tmp_path / "new").iterdir()] == ["a.json"]
    (tmp_path / "link").symlink_to(tmp_path / "new" / "b.json")
    check_output(tmp_path / "link")
    assert not (tmp_path / "new" / "b.json").exists()
