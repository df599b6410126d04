"""`gems evaluate`: the model and its floors on the same cases, with intervals."""

from __future__ import annotations

import json
import os
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from rich.console import Console
from rich.progress import Progress

from index.bundle import Bundle
from index.history import Task
from server.engine.torch_engine import TorchEngine
from training.data.dataset import DataSet
from training.data.splits import Case, leave_one_out
from training.evaluation.bootstrap import mean_interval
from training.evaluation.floors import floor_ranks, floor_scores, popularity
from training.evaluation.matching import query_match_share
from training.evaluation.metrics import NAMES, per_case
from training.evaluation.ranking import EvaluationError, cases_of, draw_cases, rank_cases, target_ranks


def evaluate(
    bundle_folder: Path,
    data_folder: Path,
    *,
    split: str = "test",
    max_cases: int | None = None,
    beam_width: int = 50,
    exclude_history: bool = False,
    seed: int = 0,
    threads: int | None = None,
    console: Console | None = None,
) -> dict[str, Any]:
    """Rank the whole catalogue for every case, both ways, through the serving engine.

    Returns a JSON-ready dictionary:

        search, recommendation            metric → mean over the cases
        floors.<name>.<task>              metric → mean
        intervals.<task>                  metric → [low, high], 95% bootstrap over cases
        differences.<name>.<task>         metric → [mean, low, high] of model − floor, paired
        cases.<task>, protocol, data      what it was measured on
        search_match_share                share of the model's top-10 search results whose text matches a
                                          word of the query
    """
    bundle = Bundle.open(bundle_folder)
    dataset = DataSet.load(data_folder)
    if [item.item_id for item in dataset.catalogue] != [item.item_id for item in bundle.index.catalogue]:
        raise EvaluationError(
            f"{bundle_folder} and {data_folder} have different catalogues; evaluate a bundle on its data set"
        )
    if split not in ("test", "validation"):
        raise EvaluationError(f"--split must be 'test' or 'validation', not {split!r}")
    torch.set_num_threads(threads or os.cpu_count() or 1)
    parts = leave_one_out(dataset)
    chosen: Sequence[Case] = draw_cases(parts.test if split == "test" else parts.validation, max_cases, seed)
    if not chosen:
        raise EvaluationError("the data set has no user with three interactions, so no case to evaluate")
    engine = TorchEngine.open(bundle)
    counts = popularity(parts.train, len(dataset.catalogue))
    result: dict[str, Any] = {
        "floors": {}, "intervals": {}, "differences": {}, "cases": {},
        "protocol": {
            "split": split, "ranking": "full catalogue", "beam_width": beam_width,
            "exclude_history": exclude_history, "bundle": bundle.info.bundle_id,
        },
        "data": dict(bundle.info.data),
    }  # fmt: skip
    with Progress(console=console) as bar:
        for task in Task:
            cases = cases_of(task, chosen)
            if not cases:
                continue
            row = bar.add_task(f"ranking for {task.value}", total=len(cases))
            rankings = rank_cases(
                engine, bundle.encoder, cases, task, beam_width=beam_width, exclude_history=exclude_history,
                progress=lambda done, total, row=row: bar.update(row, completed=done),  # type: ignore[misc]
            )  # fmt: skip
            model = per_case(target_ranks(rankings, cases))
            result["cases"][task.value] = len(cases)
            result[task.value] = _means(model)
            result["intervals"][task.value] = {name: mean_interval(model[name], seed) for name in NAMES}
            if task is Task.SEARCH:
                result["search_match_share"] = query_match_share(dataset.catalogue, cases, rankings)
            for name, scores in floor_scores(task, dataset.catalogue, counts).items():
                floor = per_case(floor_ranks(scores, cases, exclude_history=exclude_history))
                result["floors"].setdefault(name, {})[task.value] = _means(floor)
                result["differences"].setdefault(name, {})[task.value] = {
                    metric: (float((model[metric] - floor[metric]).mean()),
                             *mean_interval(model[metric] - floor[metric], seed))
                    for metric in NAMES
                }  # fmt: skip
    return result


def _means(values: dict[str, NDArray[np.float64]]) -> dict[str, float]:
    return {name: float(column.mean()) for name, column in values.items()}


def save_evaluation(result: dict[str, Any], path: Path) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(json.dumps(result, indent=2) + "\n", "utf-8")
