"""`gems evaluate`: figures of the model and its floors on the same cases, with intervals."""

from __future__ import annotations

import json
import os
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch
from rich.console import Console
from rich.progress import Progress

from index.bundle.bundle import Bundle
from index.files import atomic_write
from index.sequence.events import Task
from server.engine.torch_backend.engine import TorchEngine
from training.data.dataset import DataSet
from training.data.splits import LEAVE_ONE_OUT, Case, leave_one_out
from training.errors import EvaluationError
from training.evaluation.candidates import Candidates
from training.evaluation.case_ranks import CaseRanks, TaskRanks
from training.evaluation.figures import add_task, empty_result
from training.evaluation.matching import query_match_share
from training.evaluation.ranking import cases_of, draw_cases, rank_cases, target_ranks
from training.run.run_folder import fingerprint


def evaluate(
    bundle_folder: Path,
    data_folder: Path,
    *,
    split: str = "test",
    max_cases: int | None = None,
    beam_width: int = 50,
    exclude_history: bool = False,
    sampled_negatives: int | None = None,
    seed: int = 0,
    threads: int | None = None,
    console: Console | None = None,
    ranks_file: Path | None = None,
    system: str = "model",
) -> dict[str, Any]:
    """Rank the whole catalogue for every case, as search and as recommendation, with the serving engine.

    split: 'test' or 'validation'.
    max_cases: number of cases that are drawn; None: all.
    sampled_negatives: rank the target among N sampled items only.
    seed: seed of the drawn cases, of the negatives and of the bootstrap.
    ranks_file: file for the rank of every case, for `gems compare`.
    system: name of the model in that file.
    Raises `EvaluationError` if bundle, data set and options do not fit together.

    Returns a JSON-ready dictionary:

        search, recommendation            metric → mean over the cases
        floors.<name>.<task>              metric → mean
        intervals.<task>                  metric → [low, high], 95% bootstrap over cases
        differences.<name>.<task>         metric → [mean, low, high] of model − floor, paired
        cases.<task>, protocol, data      number of cases, and description of the measurement
        search_match_share                share of the model's top-10 search results whose text contains a
                                          word of the query
    """
    bundle = Bundle.open(bundle_folder)
    dataset = DataSet.load(data_folder)
    if dataset.catalogue.item_ids != bundle.index.catalogue.item_ids:
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
    candidates = Candidates(exclude_history, sampled_negatives, seed)
    candidates.check(chosen, len(dataset.catalogue))
    engine = TorchEngine.open(bundle)
    protocol = {"split": split, "users": LEAVE_ONE_OUT} | candidates.protocol
    about = protocol | {"beam_width": beam_width, "bundle": bundle.info.bundle_id}
    result = empty_result(about, dict(bundle.info.data))
    ranked: dict[Task, TaskRanks] = {}
    with Progress(console=console) as bar:
        for task in Task:
            cases = cases_of(task, chosen)
            if not cases:
                continue
            row = bar.add_task(f"ranking for {task.value}", total=len(cases))
            rankings = rank_cases(
                engine, bundle.encoder, cases, task, beam_width=beam_width, candidates=candidates,
                progress=lambda done, total, row=row: bar.update(row, completed=done),  # type: ignore[misc]
            )  # fmt: skip
            ranks = target_ranks(rankings, cases)
            ranked[task] = TaskRanks.of(cases, ranks)
            add_task(
                result, task, cases, ranks, dataset.catalogue, parts.train, candidates=candidates, seed=seed
            )  # fmt: skip
            if task is Task.SEARCH:
                result["search_match_share"] = query_match_share(dataset.catalogue, cases, rankings)
    if ranks_file is not None:
        CaseRanks(system, 0, fingerprint(dataset), protocol, ranked).save(ranks_file)
    return result


def save_evaluation(result: dict[str, Any], path: Path) -> None:
    """Write the result as JSON."""
    with atomic_write(path) as draft:
        draft.write_text(json.dumps(result, indent=2) + "\n", "utf-8")
