"""Every YAML and JSON file that a person gives to a command: whatever is wrong with it is one line, and exit code 2."""

from __future__ import annotations

import ast
import json
import shutil
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import yaml
from support.bundles import make_bundle
from support.damage import DEEP
from support.paths import ROOT
from support.walks import make_data, settings

from index.bundle.bundle import Bundle
from training.baselines.settings import NCFSettings
from training.cli.main import main
from training.data.dataset import DataSet
from training.errors import EvaluationError
from training.evaluation.case_ranks import CaseRanks
from training.run.run_folder import record_run
from training.settings import nested, read_yaml

ITEMS = '{"item_id": "a", "title": "a"}\n'
EVENTS = '{"user_id": "u", "item_id": "a", "timestamp": 1, "behaviour": "recommendation"}\n'

# command line, with names of files below the world → the files that it reads, each to be damaged
COMMANDS: dict[str, tuple[str, ...]] = {
    "train --data data --out new --config settings.yaml": ("settings.yaml", "data/data.json", "data/items.jsonl"),
    "train --data data --out run --resume": ("run/config.yaml", "run/environment.json"),
    "baseline ncf --data data --out ncf --resume": ("ncf/config.yaml", "ncf/environment.json", "ncf/evaluation.json"),
    "sweep sweep.yaml --data data --out swept": ("sweep.yaml", "swept/one/seed-0/result.json"),
    "report run": ("run/config.yaml", "run/metrics.jsonl", "run/bundle/bundle.json"),
    "preservation run --data data": ("run/config.yaml", "run/bundle/bundle.json"),
    "data describe data": ("data/data.json", "data/items.jsonl"),
    "data import --items items.jsonl --interactions events.jsonl --out new": ("items.jsonl", "events.jsonl"),
    "data amazon-beauty --source beauty --out new": ("beauty/items.jsonl", "beauty/users.jsonl"),
    "data amazon-reviews --source amazon --out new": ("amazon/Beauty.jsonl", "amazon/meta_Beauty.jsonl"),
    "index update bundle --items items.jsonl": ("items.jsonl", "bundle/index/current.json"),
    "index versions bundle": ("bundle/index/current.json",),
    "index rollback bundle v1": ("bundle/bundle.json", "bundle/index/v1/index.json"),
    "index describe bundle": ("bundle/index/v1/index.json", "bundle/index/v1/catalogue/items.jsonl"),
    "bundle verify bundle": ("bundle/manifest.json", "bundle/config.json", "bundle/tokenizer.json"),
    "evaluate bundle --data data": ("bundle/bundle.json", "data/data.json"),
}  # fmt: skip
CASES = [(command, name) for command, names in COMMANDS.items() for name in names]

NOT_JSON = (
    DEEP,
    '{"a":' * 100_000,
    "\xff".encode("latin-1"),
    "{",
    "[]",
    "7",
    "NaN",
    '{"a": 1e999}',
    '{"a": "\\ud800"}',
)
UNUSUAL = ('{"a": 1e999}', '{"a": "\\ud800"}')
BOMB = "a0: &a0 {x: 1}\n" + "".join(f"a{k}: &a{k} {{x: *a{k - 1}, y: *a{k - 1}}}\n" for k in range(1, 40))
NOT_YAML = (
    *(
        DEEP,
        "{a: " * 100_000,
        "a: \xff".encode("latin-1"),
        "a: [",
        "- 1",
        "7",
        "a: &a [*a]",
        "&a {b: *a}",
        BOMB,
    ),
    *("a: 2001-13-45", "a: !!int ''", "a: !!timestamp x", "a: !!python/object:os.system x", "? [a]: b"),
    f"{'a.' * 5000}: 1",
)


@pytest.fixture(scope="module")
def made(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with everything that the commands read; what is only read to be refused is small."""
    world = tmp_path_factory.mktemp("made")
    make_data(world / "data", users=12)
    dataset = DataSet.load(world / "data")
    record_run(world / "run", settings(), dataset, world / "data", 1)
    record_run(world / "ncf", NCFSettings(), dataset, world / "data", 1)
    (world / "ncf" / "evaluation.json").write_text("{}")
    (world / "run" / "metrics.jsonl").write_text('{"step": 1, "loss": 1.0}\n' * 2)
    bundle = make_bundle(world / "bundle", codebooks=(4, 5))
    shutil.copytree(bundle, world / "run" / "bundle")
    (world / "run" / "prepared").mkdir()
    np.savez(world / "run" / "prepared" / "codes.npz", codes=Bundle.open(bundle).index.trie.codes())
    (world / "settings.yaml").write_text("method: full\n")
    (world / "sweep.yaml").write_text(yaml.safe_dump({"variants": {"one": {"method": "full"}}}))
    (world / "swept" / "one" / "seed-0").mkdir(parents=True)
    (world / "items.jsonl").write_text(ITEMS)
    (world / "events.jsonl").write_text(EVENTS)
    (world / "amazon").mkdir()
    (world / "amazon" / "Beauty.jsonl").write_text(
        '{"user_id": "u", "parent_asin": "a", "timestamp": 1700000000000}\n'
    )
    (world / "amazon" / "meta_Beauty.jsonl").write_text(
        '{"parent_asin": "a", "title": "a", "categories": []}\n'
    )
    (world / "beauty").mkdir()
    (world / "beauty" / "items.jsonl").write_text(
        '{"item": 0, "asin": "a", "title": "a", "categories": [], "queries": []}\n'
    )
    return world


@pytest.mark.parametrize(("command", "name"), CASES, ids=[f"{c.split(' -')[0]}: {name}" for c, name in CASES])
def test_a_damaged_file_is_refused_in_one_line(
    made: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: Any, command: str, name: str
) -> None:
    world = Path(shutil.copytree(made, tmp_path / "world"))
    monkeypatch.chdir(world)
    monkeypatch.setattr(sys, "argv", ["gems", *command.split()])
    path = world / name
    for content in NOT_YAML if path.suffix == ".yaml" else NOT_JSON:
        if command.startswith("report") and content in UNUSUAL:
            continue  # it leaves such figures out, and escapes such texts
        path.write_bytes(content if isinstance(content, bytes) else f"{content}\n".encode())
        if path.name == "metrics.jsonl":  # an incomplete last line is no fault
            path.write_bytes(path.read_bytes() + b'{"step": 2}\n')
        capsys.readouterr()
        with pytest.raises(SystemExit) as ended:
            main()
        said = capsys.readouterr().err
        assert ended.value.code == 2, (content[:40], said)
        line, *more = said.splitlines()
        assert line.startswith("gems: ")
        assert path.name in line or "setting" in line
        # Bad rows of an import are listed, one a line, with a summary.
        assert not more or "bad row" in said
    assert not (world / "new").exists()


def test_ranks_that_describe_themselves_wrongly(tmp_path: Path) -> None:
    for about in (DEEP, "[]", "7", "{", '{"a": 1}'):
        np.savez(tmp_path / "ranks.npz", about=np.array(about))
        with pytest.raises(EvaluationError, match=r"ranks\.npz holds no ranks"):
            CaseRanks.load(tmp_path / "ranks.npz")


def test_references_within_bounds_are_fine(tmp_path: Path) -> None:
    path = tmp_path / "shared.yaml"
    path.write_text(
        "base: &base {optimiser: {epochs: 3}}\nvariants: {one: {<<: *base, seed: 1}, two: *base}\n"
    )
    read = read_yaml(path)
    assert read["variants"]["one"] == {"optimiser": {"epochs": 3}, "seed": 1}
    assert nested({"a.b.c": 1}) == {"a": {"b": {"c": 1}}}


READS = {"json.load", "json.loads", "json.JSONDecoder", "yaml.load", "yaml.safe_load", "yaml.safe_load_all"}
READERS = {
    "index/records.py",
    "training/settings.py",
    "training/data/importing/items.py",  # a list in a cell
    "training/data/importing/tables.py",  # names the field of a row that is not finite or not Unicode, as in Parquet
    "training/report/run_log.py",  # shows runs whatever their figures and texts are
    "training/run/server_process.py",  # the log of a server
    "gems/model/knowledge.py",  # the basis that the method wrote
}


def calls(path: Path) -> set[str]:
    """Return the calls of a module of the form `name.name(...)`."""
    found = (node.func for node in ast.walk(ast.parse(path.read_text("utf-8"))) if isinstance(node, ast.Call))
    return {
        f"{each.value.id}.{each.attr}"
        for each in found
        if isinstance(each, ast.Attribute) and isinstance(each.value, ast.Name)
    }


@pytest.mark.parametrize("top", ["gems", "index", "training"])
def test_no_other_module_reads_such_files_on_its_own(top: str) -> None:
    readers = {
        path.relative_to(ROOT).as_posix() for path in (ROOT / top).rglob("*.py") if calls(path) & READS
    }
    assert readers <= READERS
    assert readers  # the check can fail


def test_what_is_written_can_be_read(made: Path) -> None:
    check: Callable[[Path], Any] = read_yaml
    assert check(made / "run" / "config.yaml")["method"] == "gems"
    assert json.loads((made / "run" / "environment.json").read_text("utf-8"))["threads"] == 1
