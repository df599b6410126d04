"""`gems compare`: a comparison of systems on the same cases, from the ranks that each of them saved."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from index.sequence.events import Task
from training.data.dataset import DataSet
from training.data.splits import split_users
from training.errors import EvaluationError
from training.evaluation.bootstrap import mean_intervals
from training.evaluation.candidates import Candidates
from training.evaluation.case_ranks import CaseRanks, TaskRanks
from training.evaluation.floors import floor_ranks, floor_scores
from training.evaluation.metrics import NAMES, per_case
from training.evaluation.ranking import cases_of
from training.run.run_folder import fingerprint

EVERYONE = "all users"


@dataclass(frozen=True)
class Group:
    """A group of cases: those with at most `most` events in the history; None: all cases."""

    name: str
    most: int | None


def groups(cold: int) -> tuple[Group, Group]:
    """Return two groups: all users, and users with at most `cold` events in the history."""
    return Group(EVERYONE, None), Group(f"history of at most {cold}", cold)


def compare(runs: Sequence[CaseRanks], *, cold: int = 5, seed: int = 0) -> dict[str, Any]:
    """Compare runs. Returns task → group → {cases, systems: name → figures}, JSON-ready.

    Runs with the same name are seeds of one system: each case counts with its mean over the seeds. Only cases that
    every run of a task has are compared. The figures of a system:

        <metric>       mean over the cases
        intervals      metric → [low, high], 95% bootstrap over cases
        differences    metric → [mean, low, high] of the system − the first system, paired
        seeds          number of seeds
        spread         metric → standard deviation over seeds
        cost           means over seeds

    cold: most events in the history of a cold user.
    seed: seed of the bootstrap.
    Raises `EvaluationError` if the runs are not of the same data and protocol.
    """
    if not runs:
        raise EvaluationError("nothing to compare: give the folders of two runs or more")
    for run in runs[1:]:
        if run.data != runs[0].data:
            raise EvaluationError(f"{run.system!r} and {runs[0].system!r} were measured on different data")
        if run.protocol != runs[0].protocol:
            raise EvaluationError(
                f"{run.system!r} and {runs[0].system!r} were ranked differently: {dict(run.protocol)} and "
                f"{dict(runs[0].protocol)}; rank them in the same way first"
            )
    result: dict[str, Any] = {"protocol": dict(runs[0].protocol)}
    for task in Task:
        mine = [run for run in runs if task in run.tasks]
        if mine:
            result[task.value] = _compare_task(mine, task, cold, seed)
    return result


def floors_of(dataset: DataSet, runs: Sequence[CaseRanks]) -> list[CaseRanks]:
    """Rank the floors of every task, on the cases of the first run of the task.

    Raises `EvaluationError` if that run was measured on other data.
    """
    found = []
    for task in Task:
        like = next((run for run in runs if task in run.tasks), None)
        if like is None:
            continue
        if fingerprint(dataset) != like.data:
            raise EvaluationError(f"{like.system!r} was measured on other data than {dataset.info.name!r}")
        parts = split_users(dataset, like.protocol["users"])
        wanted = set(like.tasks[task].users.tolist())
        held = parts.test if like.protocol["split"] == "test" else parts.validation
        cases = [case for case in cases_of(task, held) if case.user_id in wanted]
        for name, scores in floor_scores(task, dataset.catalogue, parts.train).items():
            ranks = floor_ranks(scores, cases, candidates=Candidates.of(like.protocol))
            found.append(CaseRanks(name, 0, like.data, like.protocol, {task: TaskRanks.of(cases, ranks)}))
    return found


def _compare_task(runs: Sequence[CaseRanks], task: Task, cold: int, seed: int) -> dict[str, Any]:
    shared = sorted(set.intersection(*(set(run.tasks[task].users.tolist()) for run in runs)))
    if not shared:
        raise EvaluationError(f"the runs have no {task.value} case in common")
    parts = [_of_users(run.tasks[task], shared) for run in runs]
    for run, part in zip(runs, parts, strict=True):
        if not np.array_equal(part.targets, parts[0].targets):
            raise EvaluationError(
                f"{run.system!r} and {runs[0].system!r} have different targets for the same users"
            )
    systems: dict[str, list[int]] = {}
    for k, run in enumerate(runs):
        seeds = [runs[other].seed for other in systems.setdefault(run.system, [])]
        if run.seed in seeds:
            raise EvaluationError(
                f"two runs are called {run.system!r} and have seed {run.seed}, so they are no seeds of one system; "
                "give them names of their own with --system"
            )
        systems[run.system].append(k)
    result: dict[str, Any] = {}
    for group in groups(cold):
        inside = parts[0].history <= group.most if group.most is not None else np.ones(len(shared), bool)
        entry: dict[str, Any] = {"cases": int(inside.sum()), "systems": {}}
        if inside.any():
            ranked = {name: [parts[k].ranks[inside] for k in rows] for name, rows in systems.items()}
            entry["systems"] = _figures(ranked, seed)
            for name, rows in systems.items():
                costs = [runs[k].cost for k in rows if runs[k].cost]
                if costs:
                    entry["systems"][name]["cost"] = {
                        what: float(np.mean([cost[what] for cost in costs])) for what in costs[0]
                    }
        result[group.name] = entry
    return result


def _figures(ranked: Mapping[str, Sequence[NDArray[np.int64]]], seed: int) -> dict[str, dict[str, Any]]:
    """Return the figures of each system.

    ranked: name → ranks of each seed, int64 [cases], all of the same cases.
    """
    found: dict[str, dict[str, Any]] = {}
    reference: NDArray[np.float64] | None = None
    for name, seeds in ranked.items():
        values = np.array([list(per_case(ranks).values()) for ranks in seeds])  # [seeds, metrics, cases]
        mean = values.mean(0).T  # [cases, metrics]
        entry: dict[str, Any] = dict(zip(NAMES, mean.mean(0).tolist(), strict=True))
        entry["seeds"] = len(seeds)
        entry["intervals"] = dict(zip(NAMES, mean_intervals(mean, seed), strict=True))
        if len(seeds) > 1:
            spread = values.mean(2).std(0, ddof=1)
            entry["spread"] = dict(zip(NAMES, spread.tolist(), strict=True))
        if reference is None:
            reference = mean
        else:
            apart = mean - reference
            intervals = mean_intervals(apart, seed)
            entry["differences"] = {
                metric: (float(apart[:, k].mean()), *intervals[k]) for k, metric in enumerate(NAMES)
            }
        found[name] = entry
    return found


def _of_users(ranks: TaskRanks, users: Sequence[str]) -> TaskRanks:
    """Return the cases of these users, in the order of `users`."""
    row = {user: k for k, user in enumerate(ranks.users.tolist())}
    order = np.array([row[user] for user in users])
    return TaskRanks(ranks.users[order], ranks.targets[order], ranks.history[order], ranks.ranks[order])
