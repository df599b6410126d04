"""The figures of an evaluation: means, intervals, and the paired differences from the floors."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray

from index.catalogue import Catalogue
from index.sequence.events import Event, Task
from training.data.splits import Case
from training.evaluation.bootstrap import mean_intervals
from training.evaluation.candidates import Candidates
from training.evaluation.floors import floor_ranks, floor_scores
from training.evaluation.metrics import NAMES, per_case


def empty_result(protocol: dict[str, Any], data: dict[str, Any]) -> dict[str, Any]:
    """Return an evaluation without tasks; `add_task` adds them."""
    return {
        "floors": {}, "intervals": {}, "differences": {}, "cases": {}, "protocol": protocol, "data": data,
    }  # fmt: skip


def add_task(
    result: dict[str, Any],
    task: Task,
    cases: Sequence[Case],
    ranks: NDArray[np.int64],
    catalogue: Catalogue,
    histories: Sequence[Sequence[Event]],
    *,
    candidates: Candidates,
    seed: int,
    others: Mapping[str, NDArray[np.int64]] | None = None,
) -> None:
    """Add the figures of a system and of the floors on the cases of a task to `result`.

    ranks: int64 [cases], 1-based, 0 if the target was not ranked.
    histories: training events of each person, for the floors.
    seed: seed of the bootstrap.
    others: ranks of further rankings to compare with, by name.
    """
    model = per_case(ranks)
    result["cases"][task.value] = len(cases)
    result[task.value] = _means(model)
    result["intervals"][task.value] = _intervals(model, seed)
    rivals = dict(others or {})
    for name, scores in floor_scores(task, catalogue, histories).items():
        rivals[name] = floor_ranks(scores, cases, candidates=candidates)
    for name, theirs in rivals.items():
        floor = per_case(theirs)
        result["floors"].setdefault(name, {})[task.value] = _means(floor)
        apart = {metric: model[metric] - floor[metric] for metric in NAMES}
        intervals = _intervals(apart, seed)
        result["differences"].setdefault(name, {})[task.value] = {
            metric: (float(apart[metric].mean()), *intervals[metric]) for metric in NAMES
        }


def add_newer(
    result: dict[str, Any],
    task: Task,
    cases: Sequence[Case],
    ranks: NDArray[np.int64],
    newer: NDArray[np.int64],
) -> None:
    """Add the number and the figures of the cases whose targets are newer than the model to `result`.

    newer: their catalogue rows.
    """
    chosen = np.isin([case.target for case in cases], newer)
    figures = (
        {name: float(column[chosen].mean()) for name, column in per_case(ranks).items()}
        if chosen.any()
        else {}
    )
    result.setdefault("newer", {})[task.value] = {"cases": int(chosen.sum())} | figures


def _intervals(values: dict[str, NDArray[np.float64]], seed: int) -> dict[str, tuple[float, float]]:
    columns = np.stack([values[name] for name in NAMES], axis=1)
    return dict(zip(NAMES, mean_intervals(columns, seed), strict=True))


def _means(values: dict[str, NDArray[np.float64]]) -> dict[str, float]:
    return {name: float(column.mean()) for name, column in values.items()}
