"""`gems compare`: systems side by side on the same cases, from the ranks that each left."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from index.history import Task
from training.data.dataset import DataSet
from training.data.splits import split_users
from training.evaluation.bootstrap import mean_interval
from training.evaluation.case_ranks import CaseRanks, TaskRanks
from training.evaluation.floors import floor_ranks, floor_scores, popularity
from training.evaluation.metrics import NAMES, per_case
from training.evaluation.ranking import EvaluationError, cases_of
from training.run_folder import fingerprint

EVERYONE = "all users"


@dataclass(frozen=True)
class Group:
    """Which cases: those with at most `most` events in the history; None: all."""

    name: str
    most: int | None


def groups(cold: int) -> tuple[Group, Group]:
    """All users, and the cold ones."""
    return Group(EVERYONE, None), Group(f"history of at most {cold}", cold)


def compare(runs: Sequence[CaseRanks], *, cold: int = 5, seed: int = 0) -> dict[str, Any]:
    """Task → group → {cases, systems: name → figures}, JSON-ready.

    Runs of the same name are seeds of one system: each case counts with its mean over them. Only cases that every
    run of a task has are compared. Figures: metric → mean; `intervals`: metric → [low, high], 95% bootstrap over
    cases; `differences`: metric → [mean, low, high] from the first system, paired; `seeds`, and
    `spread`: metric → standard deviation over seeds; `cost`: means over seeds.

    Raises `EvaluationError` where the runs are not of the same data and protocol.
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


def floors_of(dataset: DataSet, like: CaseRanks) -> list[CaseRanks]:
    """The floors on the cases of a run. Raises `EvaluationError` if the run was on other data."""
    if fingerprint(dataset) != like.data:
        raise EvaluationError(f"{like.system!r} was measured on other data than {dataset.info.name!r}")
    users, split = like.protocol["users"], like.protocol["split"]
    parts = split_users(dataset, users)
    counts = popularity(parts.train, len(dataset.catalogue))
    exclude = like.protocol["exclude_history"]
    found = []
    for task, ranks in like.tasks.items():
        wanted = set(ranks.users.tolist())
        held = parts.test if split == "test" else parts.validation
        cases = [case for case in cases_of(task, held) if case.user_id in wanted]
        for name, scores in floor_scores(task, dataset.catalogue, counts).items():
            floor = TaskRanks.of(cases, floor_ranks(scores, cases, exclude_history=exclude))
            found.append(CaseRanks(name, 0, like.data, like.protocol, {task: floor}))
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
        systems.setdefault(run.system, []).append(k)
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
    """Of each system, whose seeds are lists of ranks of the same cases."""
    found: dict[str, dict[str, Any]] = {}
    reference: dict[str, NDArray[np.float64]] | None = None
    for name, seeds in ranked.items():
        values = [per_case(ranks) for ranks in seeds]
        mean = {metric: np.mean([v[metric] for v in values], axis=0) for metric in NAMES}
        entry: dict[str, Any] = {metric: float(mean[metric].mean()) for metric in NAMES}
        entry["seeds"] = len(seeds)
        entry["intervals"] = {metric: mean_interval(mean[metric], seed) for metric in NAMES}
        if len(seeds) > 1:
            entry["spread"] = {
                metric: float(np.std([v[metric].mean() for v in values], ddof=1)) for metric in NAMES
            }
        if reference is None:
            reference = mean
        else:
            entry["differences"] = {
                metric: (float((mean[metric] - reference[metric]).mean()),
                         *mean_interval(mean[metric] - reference[metric], seed))
                for metric in NAMES
            }  # fmt: skip
        found[name] = entry
    return found


def _of_users(ranks: TaskRanks, users: Sequence[str]) -> TaskRanks:
    """The cases of these users, in their order."""
    row = {user: k for k, user in enumerate(ranks.users.tolist())}
    order = np.array([row[user] for user in users])
    return TaskRanks(ranks.users[order], ranks.targets[order], ranks.history[order], ranks.ranks[order])
