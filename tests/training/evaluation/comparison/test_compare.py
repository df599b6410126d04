"""Ranks on disk, `gems compare`, ranks from scores, and the chronological split of users."""

from __future__ import annotations

import json
import sys
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from rich.console import Console
from support.data_sets import small_data_set
from support.walks import make_data

from index.sequence.events import Event, Task
from training.baselines.run import run_baseline
from training.baselines.settings import NCFSettings, SASRecSettings
from training.cli.main import main
from training.data.dataset import DataSet
from training.data.histories import UserHistory
from training.data.schema import DataError
from training.data.splits import Case, chronological_users, leave_one_out
from training.errors import EvaluationError
from training.evaluation.bootstrap import mean_interval
from training.evaluation.candidates import Candidates
from training.evaluation.case_ranks import CaseRanks, TaskRanks
from training.evaluation.comparison.compare import compare, groups
from training.evaluation.comparison.table import markdown
from training.evaluation.metrics import per_case
from training.evaluation.scoring import score_ranks

PROTOCOL = {"split": "test", "users": "leave-one-out", "ranking": "full catalogue", "exclude_history": False}
USERS = [f"u{k}" for k in range(40)]


def run_of(system: str, ranks: Sequence[int], seed: int = 0, users: Sequence[str] = USERS) -> CaseRanks:
    """Make a run in which user k has k + 1 events and target k."""
    cases = [Case(u, tuple(Event(0) for _ in range(int(u[1:]) + 1)), int(u[1:]), None) for u in users]
    ranked = TaskRanks.of(cases, np.array(ranks, np.int64))
    return CaseRanks(system, seed, "data", PROTOCOL, {Task.RECOMMENDATION: ranked}, {"parameters": 10.0})


@given(st.integers(0, 10_000), st.booleans(), st.sampled_from([None, 1, 5]))
@settings(max_examples=50, deadline=None)
def test_ranks_of_scores_are_places_among_the_sorted_candidates(
    seed: int, exclude: bool, negatives: int | None
) -> None:
    rng = np.random.default_rng(seed)
    scores = rng.integers(0, 4, (6, 12)).astype(np.float32)  # many ties
    cases = [
        Case(
            f"u{row}", tuple(Event(int(k)) for k in rng.integers(0, 12, 1 + row)), int(rng.integers(12)), None
        )
        for row in range(6)
    ]
    rows = {id(case): row for row, case in enumerate(cases)}
    candidates = Candidates(exclude, negatives, seed)
    ranks = score_ranks(
        lambda some: scores[[rows[id(c)] for c in some]], cases, limit=7, candidates=candidates, batch=4
    )
    for row, case in enumerate(cases):
        seen = {event.item for event in case.history} if exclude else set()
        among = range(12) if negatives is None else candidates.rows(case, 12)
        order = [k for k in np.argsort(-scores[row], kind="stable") if k in among and k not in seen][:7]
        assert ranks[row] == (order.index(case.target) + 1 if case.target in order else 0)


@given(st.integers(0, 10_000))
@settings(max_examples=30, deadline=None)
def test_sampled_negatives_are_new_to_the_person_and_the_same_for_everyone_who_ranks(seed: int) -> None:
    rng = np.random.default_rng(seed)
    history = tuple(Event(int(k)) for k in rng.integers(0, 30, 8))
    case = Case("someone", history, int(rng.integers(30)), "a query")
    candidates = Candidates(negatives=15, seed=seed)
    rows = candidates.rows(case, 30)
    assert rows is not None
    assert len(set(rows.tolist())) == 16
    assert case.target in rows
    assert not {event.item for event in history} & set(rows.tolist()) - {case.target}
    again = Candidates.of(json.loads(json.dumps(candidates.protocol)))
    assert again == candidates
    assert np.array_equal(rows, again.rows(case, 30))
    assert any(not np.array_equal(rows, replace(candidates, seed=seed + k).rows(case, 30)) for k in (1, 2, 3))
    with pytest.raises(EvaluationError, match="ask for fewer"):
        Candidates(negatives=30).rows(case, 30)


def test_too_many_negatives_are_refused_before_anything_is_trained(tmp_path: Path) -> None:
    data, quiet = make_data(tmp_path / "data", users=60), Console(quiet=True)
    with pytest.raises(EvaluationError, match="ask for fewer"):
        run_baseline(data, tmp_path / "run", NCFSettings(sampled_negatives=29), console=quiet)
    assert not (tmp_path / "run").exists()


def test_every_item_is_drawn_as_often() -> None:
    """An item is drawn 250 times by 1,000 users with 5 of 20 items each, with a standard deviation of 14."""
    drawn = np.zeros(21)
    for k in range(1000):
        drawn[Candidates(negatives=5).rows(Case(f"person {k}", (), 20, None), 21)] += 1
    assert drawn[20] == 1000
    assert np.abs(drawn[:20] - 250).max() < 60


def test_ranks_come_back_from_disk_and_other_files_are_refused(tmp_path: Path) -> None:
    run = run_of("one", range(40), seed=3)
    run.save(tmp_path / "run" / "ranks.npz")
    again = CaseRanks.load(tmp_path / "run")
    assert (again.system, again.seed, again.protocol, again.cost) == (
        "one",
        3,
        PROTOCOL,
        {"parameters": 10.0},
    )
    for column in ("users", "targets", "history", "ranks"):
        mine, theirs = (getattr(r.tasks[Task.RECOMMENDATION], column) for r in (run, again))
        assert np.array_equal(mine, theirs)
    with pytest.raises(EvaluationError, match=r"a folder without a file ranks\.npz"):
        CaseRanks.load(tmp_path)
    content = (tmp_path / "run" / "ranks.npz").read_bytes()
    for spoiled in (b"", b"nonsense", content[: len(content) // 2]):
        (tmp_path / "spoiled.npz").write_bytes(spoiled)
        with pytest.raises(EvaluationError, match="ranks"):
            CaseRanks.load(tmp_path / "spoiled.npz")


def test_a_comparison_is_paired_by_user_and_averages_seeds() -> None:
    rng = np.random.default_rng(0)
    first = rng.integers(0, 15, 40)
    seeds = [rng.integers(0, 15, 40) for _ in range(2)]
    order = rng.permutation(40)  # the other system has its cases in another order
    runs = [run_of("first", first)] + [
        run_of("other", ranks[order], seed, [USERS[k] for k in order]) for seed, ranks in enumerate(seeds)
    ]
    result = compare(runs)["recommendation"]["all users"]
    ours, theirs = per_case(first)["hit@10"], np.mean([per_case(r)["hit@10"] for r in seeds], axis=0)
    other = result["systems"]["other"]
    order = np.argsort(USERS)  # users are sorted by their names
    assert result["cases"] == 40
    assert other["hit@10"] == pytest.approx(theirs.mean())
    assert other["differences"]["hit@10"][0] == pytest.approx((theirs - ours).mean())
    assert other["differences"]["hit@10"][1:] == pytest.approx(mean_interval((theirs - ours)[order]))
    assert other["seeds"] == 2
    assert other["spread"]["hit@10"] == pytest.approx(
        np.std([per_case(r)["hit@10"].mean() for r in seeds], ddof=1)
    )
    assert "differences" not in result["systems"]["first"]


def test_cold_users_are_those_with_short_histories_and_shared_cases_count() -> None:
    ranks = [1] * 5 + [0] * 35
    runs = [run_of("first", ranks), run_of("other", ranks[2:], users=USERS[2:])]
    result = compare(runs, cold=5)["recommendation"]
    assert [result[g.name]["cases"] for g in groups(5)] == [38, 3]
    assert result[groups(5)[1].name]["systems"]["first"]["hit@10"] == 1.0
    empty = compare([run_of("first", ranks[20:], users=USERS[20:])], cold=5)["recommendation"]
    assert empty[groups(5)[1].name] == {"cases": 0, "systems": {}}
    assert "(0 cases)" in markdown({"recommendation": empty})


def test_what_cannot_be_compared_is_named() -> None:
    run = run_of("first", [1] * 40)
    with pytest.raises(EvaluationError, match="different data"):
        compare([run, replace(run, data="other")])
    with pytest.raises(EvaluationError, match="ranked differently"):
        compare([run, replace(run, protocol=PROTOCOL | {"exclude_history": True})])
    with pytest.raises(EvaluationError, match="in common"):
        compare([run_of("one", [1], users=["u1"]), run_of("two", [1], users=["u2"])])
    with pytest.raises(EvaluationError, match="no seeds of one system"):
        compare([run, run_of("other", [1] * 40), run_of("first", [2] * 40)])
    with pytest.raises(EvaluationError, match="nothing to compare"):
        compare([])


def test_the_command_puts_baselines_and_floors_in_one_table(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    data, quiet = make_data(tmp_path / "data", users=60), Console(quiet=True)
    small = {"hidden": 16, "epochs": 2, "threads": 1}
    first = run_baseline(data, tmp_path / "sasrec", SASRecSettings(layers=1, **small), console=quiet)
    run_baseline(data, tmp_path / "ncf", NCFSettings(**small), console=quiet)
    command = ["gems", "compare", str(tmp_path / "sasrec"), str(tmp_path / "ncf"), "--data", str(data)]
    monkeypatch.setattr(sys, "argv", [*command, "--json", str(tmp_path / "figures.json"), "--cold", "6"])
    with pytest.raises(SystemExit):
        main()
    table = capsys.readouterr().out
    assert "| sasrec, id | 1 |" in table
    assert "| ncf | 1 |" in table
    found = json.loads((tmp_path / "figures.json").read_text())["recommendation"]
    systems = found["all users"]["systems"]
    assert list(systems) == ["sasrec, id", "ncf", "popularity", "transitions", "co_occurrence"]
    assert systems["sasrec, id"]["hit@10"] == first["recommendation"]["hit@10"]
    assert systems["popularity"]["hit@10"] == first["floors"]["popularity"]["recommendation"]["hit@10"]
    difference = first["differences"]["popularity"]["recommendation"]["hit@10"][0]
    assert systems["popularity"]["differences"]["hit@10"][0] == pytest.approx(-difference)


def test_chronological_users_are_unseen_and_came_last() -> None:
    dataset = small_data_set(tuple(2 + k % 4 for k in range(20)))
    shifted = [
        UserHistory(
            u.user_id, u.events, u.simulated_queries, tuple(t + 100 * (7 * k % 20) for t in u.timestamps)
        )
        for k, u in enumerate(dataset.users)
    ]
    dataset = DataSet(dataset.info, dataset.catalogue, shifted)
    split = chronological_users(dataset)
    assert (len(split.train), len(split.validation), len(split.test)) == (16, 2, 2)
    latest = {user.user_id: user.timestamps[-1] for user in shifted}
    whole = {user.events: user for user in shifted}
    trained = [whole[events] for events in split.train]
    assert max(u.timestamps[-1] for u in trained) < min(latest[c.user_id] for c in split.validation)
    assert max(latest[c.user_id] for c in split.validation) < min(latest[c.user_id] for c in split.test)
    held = {case.user_id for case in (*split.validation, *split.test)}
    assert not held & {user.user_id for user in trained}
    assert {case.user_id for case in leave_one_out(dataset).test} & held


def test_users_without_real_times_are_not_split_by_time() -> None:
    dataset = small_data_set((3,) * 20)
    simulated = replace(dataset.info, simulation={"timestamp": "positions"})
    with pytest.raises(DataError, match=r"time stamps .* are simulated"):
        chronological_users(DataSet(simulated, dataset.catalogue, dataset.users))
    with pytest.raises(DataError, match="too few"):
        chronological_users(small_data_set((3, 3, 3)))
