"""The table of systems, the command's refusals, and one pass that ranks as two would."""

from __future__ import annotations

import re
import sys
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import pytest
from numpy.typing import NDArray
from rich.console import Console
from support.data_sets import small_data_set
from support.walks import make_data, settings

from index.sequence.events import Task
from training.cli.main import main
from training.data.splits import Case, leave_one_out
from training.evaluation.candidates import Candidates
from training.evaluation.ranking import rank_cases, target_ranks
from training.evaluation.scoring import score_ranks, score_ranks_among
from training.fit import fit
from training.report.scatter import Dot, scatter_chart
from training.reproduce.rankers import EngineRanker
from training.reproduce.systems import ReproduceError, System, check, choose, load_systems

NAMES = {
    "popularity", "transitions", "co-occurrence", "bm25", "ncf", "sasrec", "sasrec-alphafuse", "dreamrec", "ance",
    "unified-ssr", "tiger", "letter", "genret", "webultron", "bsr", "sem-bsr", "sem-bsr-moe", "gensar", "diger",
    "lora", "lora-moe", "gems",
}  # fmt: skip


def test_the_table_has_every_system_and_each_trained_one_the_same_number_of_tries() -> None:
    systems = load_systems()
    assert set(systems) >= NAMES
    assert {len(system.points(100)) for system in systems.values() if system.kind != "floor"} == {3}
    there = {name: system for name, system in systems.items() if system.exists}
    check(there, 3)
    assert {"popularity", "ncf", "sasrec", "ance"} <= set(there)


def test_a_grid_is_tried_in_its_order() -> None:
    system = System(baseline="sasrec", grid={"hidden": [16, 32], "dropout": [0.1, 0.2]})
    points = [{"hidden": 16, "dropout": 0.1}, {"hidden": 16, "dropout": 0.2}, {"hidden": 32, "dropout": 0.1}]
    assert system.points(3) == points
    assert System(floor="bm25").points(3) == [{}]


@pytest.mark.parametrize(
    ("row", "message"),
    [
        ("{recipe: small, floor: bm25}", "one of floor, baseline and recipe"),
        ("{}", "one of floor, baseline and recipe"),
        ("{floor: bm25, grid: {a: [1]}}", "a floor has no settings"),
        ("{baseline: ncf, grid: {hidden: []}}", "hidden has no value"),
        ("{baseline: ncf, colour: red}", "colour"),
    ],
)
def test_a_row_that_is_no_system_is_named(row: str, message: str, tmp_path: Path) -> None:
    path = tmp_path / "systems.yaml"
    path.write_text(f"mine: {row}")
    with pytest.raises(ReproduceError, match=f"'mine'.*{message}"):
        load_systems(path)


def test_unknown_systems_settings_and_builds_without_one_are_refused_first() -> None:
    systems = {
        "here": System(baseline="ncf", grid={"hidden": [8]}),
        "there": System(recipe="nobody"),
        "wrong": System(recipe="small", settings={"optimiser.batch_size": -1}),
    }
    with pytest.raises(ReproduceError, match="called x, y; there are: here, there, wrong"):
        choose(systems, ["here", "x", "y"])
    with pytest.raises(
        ReproduceError, match=r"there \(no recipe 'nobody'\); leave them out: --systems 'here,wrong'"
    ):
        check(systems, 1)
    with pytest.raises(ReproduceError, match=r"'wrong'.*optimiser\.batch_size"):
        check(choose(systems, ["wrong"]), 1)
    with pytest.raises(ReproduceError, match="'here' has 1 settings"):
        check(choose(systems, ["here"]), 2)


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["--data", "d", "--systems", "nobody"], "no system is called nobody; there are: popularity, "),
        (["--data", "beauty", "--systems", "popularity"], "needs --source"),
        (["--data", "nowhere", "--systems", "popularity"], "no data set at nowhere"),
    ],
)
def test_the_command_refuses_before_it_writes(
    words: list[str],
    message: str,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(sys, "argv", ["gems", "reproduce", "--out", str(tmp_path / "out"), *words])
    with pytest.raises(SystemExit) as ended:
        main()
    assert ended.value.code == 2
    assert message in capsys.readouterr().err
    assert not (tmp_path / "out").exists()


@pytest.mark.parametrize("exclude_history", [False, True])
@pytest.mark.parametrize("codebooks", [(30,), (4, 4)])
def test_one_pass_of_the_engine_ranks_as_two_would(
    codebooks: tuple[int, ...], exclude_history: bool, tmp_path: Path
) -> None:
    data = make_data(tmp_path / "walks", users=40)
    config = settings({"optimiser.epochs": 2, "identifiers.codebooks": codebooks})
    trained = fit(data, tmp_path / "run", config, console=Console(quiet=True))
    assert trained is not None
    encoder, cases = trained.prepared.encoder(config), list(trained.split.test)
    ranker = EngineRanker(trained.engine, encoder, tuple(Task), 30, {})
    sampled = Candidates(exclude_history, 9)
    for task in Task:
        both = ranker.ranks(task, cases, sampled)
        for found, rule in zip(both, (Candidates(exclude_history), sampled), strict=True):
            alone = rank_cases(trained.engine, encoder, cases, task, beam_width=30, candidates=rule)
            assert found.tolist() == target_ranks(alone, cases).tolist()


def test_one_pass_of_scores_ranks_as_two_would_and_no_number_finds_nothing() -> None:
    cases = list(leave_one_out(small_data_set((4, 6, 7, 8))).test)
    rules = (Candidates(), Candidates(exclude_history=True), Candidates(False, 2))

    def score(some: Sequence[Case]) -> NDArray[np.floating]:
        return np.stack(
            [np.random.default_rng(len(case.history)).integers(0, 4, 10) for case in some]
        ).astype(float)

    both = score_ranks_among(score, cases, rules)
    for rule, found in zip(rules, both, strict=True):
        assert found.tolist() == score_ranks(score, cases, candidates=rule).tolist()
        for case, rank in zip(cases, found, strict=True):
            rows = rule.rows(case, 10)
            allowed = set(range(10) if rows is None else rows.tolist()) - set(rule.excluded(case))
            scores = score([case])[0]
            order = np.lexsort((sorted(allowed), -scores[sorted(allowed)]))
            ranked = [sorted(allowed)[k] for k in order]
            assert rank == (ranked.index(case.target) + 1 if case.target in allowed else 0)
    broken = score_ranks(lambda some: np.full((len(some), 10), np.nan), cases)
    assert not broken.any()


def test_labels_of_a_scatter_chart_do_not_cover_each_other() -> None:
    dots = [Dot(f"system {k}", 1.0 + 1e-3 * k, 0.5, "recipe") for k in range(6)]
    chart = scatter_chart("a <chart>", [*dots, Dot("far", 9.0, 0.1, "floor")], "x", "y", ("floor", "recipe"))
    assert "a &lt;chart&gt;" in chart
    labels = re.findall(r'<text class="figure" x="[^"]+" y="([^"]+)"[^>]*>system', chart)
    heights = [float(height) for height in labels]
    apart = np.diff(sorted(heights))
    assert len(heights) == 6
    assert apart.min() >= 11
    with pytest.raises(ValueError, match="no points"):
        scatter_chart("none", [], "x", "y", ())
