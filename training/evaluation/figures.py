"""The figures of an evaluation: means, intervals, and the paired differences from the floors."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray

from index.catalogue import Catalogue
from index.history import Task
from training.data.splits import Case
from training.evaluation.bootstrap import mean_interval
from training.evaluation.floors import floor_ranks, floor_scores
from training.evaluation.metrics import NAMES, per_case


def empty_result(protocol: dict[str, Any], data: dict[str, Any]) -> dict[str, Any]:
    """An evaluation to which `add_task` adds."""
    return {
        "floors": {}, "intervals": {}, "differences": {}, "cases": {}, "protocol": protocol, "data": data,
    }  # fmt: skip


def add_task(
    result: dict[str, Any],
    task: Task,
    cases: Sequence[Case],
    ranks: NDArray[np.int64],
    catalogue: Catalogue,
    counts: NDArray[np.float64],
    *,
    exclude_history: bool,
    seed: int,
) -> None:
    """Put the figures of a system on the cases of a task into `result`, beside its floors.

    ranks: int64 [cases], 1-based, 0 where the target was not ranked. counts: float64 [items], see `popularity`.
    """
    model = per_case(ranks)
    result["cases"][task.value] = len(cases)
    result[task.value] = means(model)
    result["intervals"][task.value] = {name: mean_interval(model[name], seed) for name in NAMES}
    for name, scores in floor_scores(task, catalogue, counts).items():
        floor = per_case(floor_ranks(scores, cases, exclude_history=exclude_history))
        result["floors"].setdefault(name, {})[task.value] = means(floor)
        result["differences"].setdefault(name, {})[task.value] = {
            metric: (float((model[metric] - floor[metric]).mean()),
                     *mean_interval(model[metric] - floor[metric], seed))
            for metric in NAMES
        }  # fmt: skip


def means(values: dict[str, NDArray[np.float64]]) -> dict[str, float]:
    return {name: float(column.mean()) for name, column in values.items()}
