"""`gems reproduce`: real trainings in child processes; killed and resumed alike; one failure stops no other."""

from __future__ import annotations

import json
import shutil
import signal
import subprocess
import sys
import time
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from html.parser import HTMLParser
from io import StringIO
from pathlib import Path
from typing import Any, ClassVar

import pytest
import yaml
from rich.console import Console
from support.walks import SETTINGS, make_data

from index.sequence.events import Task
from training.data.dataset import DataSet
from training.data.splits import leave_one_out
from training.evaluation.case_ranks import CaseRanks
from training.evaluation.floors import FLOORS, floor_scores
from training.reproduce.child import Outcome
from training.reproduce.job import Protocol
from training.reproduce.markdown import markdown
from training.reproduce.run import LOCKS, LONGEST, Plan, SystemRuns, point_name, run_all
from training.reproduce.systems import ReproduceError, load_systems
from training.reproduce.tables import tables
from training.run.locks import claim

QUIET = Console(quiet=True)

TABLE: dict[str, Any] = {
    "popularity": {"floor": "popularity"},
    "ncf": {
        "baseline": "ncf",
        "settings": {"hidden": 8, "epochs": 4},
        "grid": {"learning_rate": [0.01, 0.001, 0.1]},
    },
    "broken": {"baseline": "ncf", "settings": {"learning_rate": 1e30}, "grid": {"hidden": [8, 16]}},
    "gems": {
        "recipe": "small",
        "settings": {name: value for name, value in SETTINGS.items() if name not in ("threads", "method")}
        | {"run": {"checkpoint_every": 1e-3}, "optimiser.epochs": 40, "validation": {"conflict_cases": 0}},
        "grid": {"optimiser.learning_rate": [0.01, 0.001]},
    },
}
OPTIONS = (
    "--budget",
    "5",
    "--negatives",
    "9",
    "--threads",
    "1",
)  # the settings of the table end a training sooner


def table_file(folder: Path, *names: str) -> Path:
    path = folder / "systems.yaml"
    path.write_text(yaml.safe_dump({name: TABLE[name] for name in names}, sort_keys=False), "utf-8")
    return path


def command(data: Path, out: Path, table: Path, *more: str) -> list[str]:
    words = ["--data", str(data), "--out", str(out), "--table", str(table), *OPTIONS, *more]
    return [sys.executable, "-m", "training.cli.main", "reproduce", *words]


def steps_of(run: Path) -> int:
    """Return the step of the newest checkpoint of a run; 0 without one."""
    return max([int(path.name.partition("-")[2]) for path in run.glob("checkpoints/step-*")], default=0)


def records_of(run: Path) -> int:
    """Return how many lines a training has logged; more would mean that steps were made twice."""
    return len((run / "metrics.jsonl").read_text("utf-8").splitlines())


@pytest.fixture(scope="module")
def data(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return make_data(tmp_path_factory.mktemp("data") / "walks", users=60)


@pytest.fixture(scope="module")
def whole(data: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Return the folder of a reproduction with a system that fails, which nobody stopped."""
    folder = tmp_path_factory.mktemp("whole")
    table = table_file(folder, *TABLE)
    done = subprocess.run(command(data, folder / "out", table), capture_output=True, text=True, check=False)
    assert done.returncode == 1, done.stderr
    assert "broken failed" in done.stdout.replace("\n", " ")
    return folder / "out"


def figures(out: Path) -> dict[str, Any]:
    return json.loads((out / "tables.json").read_text("utf-8"))


def without_times(found: dict[str, Any]) -> dict[str, Any]:
    """Return the figures without what the clock says."""
    for tasks in found["rankings"].values():
        for entry in tasks.values():
            for system in entry["systems"].values():
                system.pop("cost", None)
    for system in found["systems"].values():
        system["cost"] = {k: v for k, v in system["cost"].items() if "seconds" not in k}
    return found


def test_a_system_that_fails_is_shown_and_stops_no_other(whole: Path) -> None:
    found = figures(whole)
    assert list(found["failed"]) == ["broken"]
    assert "not finite" in found["failed"]["broken"]
    for ranking in ("sampled", "full"):
        assert list(found["rankings"][ranking]["recommendation"]["systems"]) == ["popularity", "ncf", "gems"]
        assert list(found["rankings"][ranking]["search"]["systems"]) == ["popularity", "gems"]
    text = (whole / "tables.md").read_text("utf-8")
    assert "- broken: " in text
    assert text.count("| broken | failed |") == 4
    assert "9 sampled negatives" in text


def test_all_systems_have_the_same_cases_and_the_model_its_bytes(whole: Path, data: Path) -> None:
    cases = leave_one_out(DataSet.load(data)).test
    for file, negatives in (("full.npz", None), ("sampled.npz", 9)):
        ranks = [CaseRanks.load(whole / f"{name}-seed0" / file) for name in ("popularity", "ncf", "gems")]
        for each in ranks:
            assert each.protocol == ranks[0].protocol
            assert each.protocol.get("negatives") == negatives
            found = each.tasks[Task.RECOMMENDATION]
            assert found.users.tolist() == [case.user_id for case in cases]
            assert found.targets.tolist() == [case.target for case in cases]
            if negatives:
                assert found.ranks.min() >= 1
                assert found.ranks.max() <= 10
    cost = figures(whole)["systems"]["gems"]["cost"]
    assert cost["state_bytes"] > 0
    assert cost["parameters"] > 1000


def test_the_page_is_whole_and_needs_nothing_from_outside(whole: Path) -> None:
    page = (whole / "report.html").read_text("utf-8")

    class Links(HTMLParser):
        found: ClassVar[list[str]] = []

        def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
            self.found += [tag for name, _ in attrs if name in ("src", "href")] + [tag] * (tag == "script")

    reader = Links()
    reader.feed(page)
    assert not reader.found
    assert page.count("<svg") == 5
    assert page.count("<caption>") == 5
    assert "not finite" in page
    assert 'role="img" aria-label="Recommendation against search' in page


def test_a_call_that_was_stopped_and_killed_goes_on_to_the_same_tables(
    whole: Path, data: Path, tmp_path: Path
) -> None:
    """The language model is trained again: stopped by SIGTERM, then by SIGKILL, then to its end."""
    names = [name for name in TABLE if name != "broken"]  # what failed would be tried again by each call
    table, out = table_file(tmp_path, *names), tmp_path / "out"
    shutil.copytree(whole, out)
    shutil.rmtree(out / "gems-seed0")
    for name in ("tables.json", "tables.md", "report.html"):
        (out / name).unlink()
    kept = {path: path.stat().st_mtime_ns for path in out.rglob("result.json")}
    words, run = command(data, out, table), out / "gems-seed0" / "run"
    for kill in (signal.SIGTERM, signal.SIGKILL):
        process = subprocess.Popen(words, stdout=subprocess.DEVNULL, stderr=subprocess.PIPE, text=True)
        before = steps_of(run)
        while process.poll() is None and steps_of(run) <= before:
            time.sleep(0.01)
        process.send_signal(kill)
        said = process.communicate()[1]
        assert process.returncode == (2 if kill == signal.SIGTERM else -signal.SIGKILL), said
        assert ("the same command goes on" in said) == (kill == signal.SIGTERM)
        assert not (out / "tables.json").exists()
    again = subprocess.run(words, capture_output=True, text=True, check=False)
    assert again.returncode == 0, again.stderr
    assert "resumed at step" in again.stdout
    assert len(kept) == 2
    assert {path: path.stat().st_mtime_ns for path in kept} == kept
    expected = without_times(figures(whole))
    assert expected["systems"].pop("broken")["cost"] == {}
    assert without_times(figures(out)) == expected | {"failed": {}}
    assert records_of(run) == records_of(whole / "gems-seed0" / "run")


def test_settings_are_tried_on_validation_cases_and_the_best_is_measured(data: Path, tmp_path: Path) -> None:
    plan = Plan(
        load_systems(table_file(tmp_path, "ncf")), data, tmp_path / "out", 5.0, seeds=(0, 1), tuning=2, threads=1,
        protocol=Protocol(negatives=9),
    )  # fmt: skip
    runs = run_all(plan, QUIET)
    found = tables(plan, runs, DataSet.load(data).info)
    tried = found["systems"]["ncf"]["tried"]
    assert [each["settings"]["learning_rate"] for each in tried] == [0.01, 0.001]
    best = max(tried, key=lambda each: each["score"])
    assert found["systems"]["ncf"]["settings"] == best["settings"]
    assert found["systems"]["ncf"]["edge"] == ["learning_rate"]  # one of two is always an edge
    assert found["rankings"]["full"]["recommendation"]["systems"]["ncf"]["seeds"] == 2
    assert found["reference"] == "ncf"
    assert "learning_rate 0.01: 0." in markdown(found)
    times = {path: path.stat().st_mtime_ns for path in plan.out.rglob("result.json")}
    assert len(times) == 4
    assert tables(plan, run_all(plan, QUIET), DataSet.load(data).info) == found
    assert {path: path.stat().st_mtime_ns for path in plan.out.rglob("result.json")} == times
    wider = load_systems(table_file(tmp_path, "ncf"))["ncf"].model_copy(
        update={"grid": {"learning_rate": [0.01, 0.02]}}
    )
    again = run_all(replace(plan, systems={"ncf": wider}, seeds=(0,)), QUIET)["ncf"]
    assert [point["learning_rate"] for point, _ in again.tried] == [0.01, 0.02]
    assert {path: path.stat().st_mtime_ns for path in times} == times  # only the new setting is tried
    with pytest.raises(ReproduceError, match="begun with other tuning"):
        run_all(replace(plan, tuning=1), QUIET)
    with pytest.raises(ReproduceError, match="holds other files, such as walks"):
        run_all(replace(plan, out=data.parent), QUIET)
    result = plan.out / "ncf-seed1" / "result.json"
    result.write_text("{}", "utf-8")
    assert "made with other settings; delete it" in run_all(plan, QUIET)["ncf"].reason


def test_two_processes_share_a_folder_each_takes_what_no_other_works_on(data: Path, tmp_path: Path) -> None:
    """The other process is a lock on one system, held until all else is done."""
    systems = load_systems(table_file(tmp_path, "ncf", "popularity"))
    plan = Plan(systems, data, tmp_path / "out", 5.0, threads=1, protocol=Protocol(negatives=9))
    said = Console(file=StringIO(), width=200)
    with ThreadPoolExecutor(1) as pool:
        with claim(plan.out / LOCKS / "ncf"):
            working = pool.submit(run_all, plan, said)
            while not working.done() and "waiting for other processes: ncf" not in said.file.getvalue():
                time.sleep(0.01)
            assert not working.done()
            assert (plan.out / "popularity-seed0" / "result.json").exists()
            assert not (plan.out / "ncf-seed0").exists()
        runs = working.result()
    assert list(runs) == list(systems)
    assert all(found.runs[0].result for found in runs.values())


def test_a_point_of_many_settings_has_a_short_name_of_its_own() -> None:
    points = [{f"optimiser.setting_{k}": value for k in range(20)} for value in (1, 2)]
    names = {point_name(point) for point in points}
    assert len(names) == 2
    assert max(map(len, names)) == LONGEST
    assert point_name({"optimiser.learning_rate": 0.01}) == "optimiser.learning_rate=0.01"


def test_only_a_value_inside_of_the_tried_ones_is_at_no_edge() -> None:
    done = Outcome(Path(), {"score": 0.5})
    tried = [({"rate": rate, "kind": "a"}, done) for rate in (2.0, 1.0, 3.0)]
    edges = {rate: SystemRuns(tried, {"rate": rate, "kind": "a"}, {}).edge for rate in (1.0, 2.0, 3.0)}
    assert edges == {1.0: ["rate"], 2.0: [], 3.0: ["rate"]}


def test_the_names_of_the_floors_are_those_that_are_ranked(data: Path) -> None:
    dataset = DataSet.load(data)
    train = leave_one_out(dataset).train
    for task in Task:
        named = {name for name, tasks in FLOORS.items() if task in tasks}
        assert set(floor_scores(task, dataset.catalogue, train)) == named
