"""`gems evaluate`: figures of the model and its floors on the same cases, with intervals."""

from __future__ import annotations

import os
from collections.abc import Sequence
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any, Literal

import numpy as np
import torch
from numpy.typing import NDArray
from rich.console import Console
from rich.progress import Progress, TaskID

from index.bundle.bundle import Bundle
from index.pool.pool import Fused
from index.pool.pool_index import PoolIndex
from index.sequence.events import Task
from server.engine.options import EngineOptions
from server.engine.torch_backend.engine import TorchEngine
from training.data.dataset import DataSet
from training.data.schema import DataError
from training.data.splits import LEAVE_ONE_OUT, Case, leave_one_out
from training.errors import EvaluationError
from training.evaluation.calibration import calibration_error, first_items
from training.evaluation.candidates import Candidates, excludes_history
from training.evaluation.case_ranks import CaseRanks, TaskRanks
from training.evaluation.figures import add_newer, add_task, empty_result
from training.evaluation.matching import query_match_share
from training.evaluation.pools import rank_pools
from training.evaluation.ranking import RankedItems, cases_of, draw_cases, rank_cases, target_ranks
from training.outputs import write_json
from training.run.device import engine_device
from training.run.run_folder import fingerprint
from training.settings import DeviceName


def evaluate(
    bundle_folder: Path,
    data_folder: Path,
    *,
    split: str = "test",
    max_cases: int | None = None,
    beam_width: int = 50,
    exclude_history: bool | None = None,
    sampled_negatives: int | None = None,
    seed: int = 0,
    threads: int | None = None,
    device: DeviceName = "auto",
    console: Console | None = None,
    ranks_file: Path | None = None,
    system: str = "model",
    ranking: Literal["pool", "beam"] | None = None,
) -> dict[str, Any]:
    """Rank the whole catalogue for every case, as search and as recommendation, with the serving engine.

    split: 'test' or 'validation'.
    max_cases: number of cases that are drawn; None: all.
    exclude_history: never rank items of the history; None: see `excludes_history`.
    sampled_negatives: rank the target among N sampled items only.
    seed: seed of the drawn cases, of the negatives and of the bootstrap.
    ranks_file: file for the rank of every case, for `gems compare`.
    system: name of the model in that file.
    ranking: 'pool' (candidates from all sources, fused, as a server ranks by default) or 'beam'; None: 'pool' if the
        bundle has weights for it.
    Raises `EvaluationError` if bundle, data set and options do not fit together.

    Returns a JSON-ready dictionary:

        search, recommendation            metric → mean over the cases
        floors.<name>.<task>              metric → mean; with a pool also of the beam alone (`beam`)
        intervals.<task>                  metric → [low, high], 95% bootstrap over cases
        differences.<name>.<task>         metric → [mean, low, high] of model − floor, paired
        cases.<task>, protocol, data      number of cases, and description of the measurement; cases whose target was
                                          removed from the bundle are left out, and counted in the protocol
        newer.<task>                      if items were added after the training: cases whose target is one of them, and
                                          metric → mean over these
        calibration.<task>                of the pool: expected calibration error of the relevance of the first ten
        search_match_share                share of the model's top-10 search results whose text contains a
                                          word of the query
    """
    bundle = Bundle.open(bundle_folder)
    dataset = own = DataSet.load(data_folder)
    if dataset.catalogue.item_ids != bundle.index.catalogue.item_ids:
        dataset = _on_items_of(
            bundle, dataset, f"{bundle_folder} and {data_folder} have different catalogues"
        )
    if split not in ("test", "validation"):
        raise EvaluationError(f"--split must be 'test' or 'validation', not {split!r}")
    on = EngineOptions(device=engine_device(device))
    torch.set_num_threads(threads or os.cpu_count() or 1)
    parts = leave_one_out(dataset)
    cases_of_split = parts.test if split == "test" else parts.validation
    if not cases_of_split:
        raise EvaluationError("the data set has no user with three interactions, so no case to evaluate")
    removed = set(bundle.index.removed)
    if sampled_negatives is not None and (removed or own is not dataset):
        raise EvaluationError(
            f"the items of {bundle_folder} were changed since its training, so that its negatives would not be those of"
            " other systems; rank the whole catalogue, or evaluate version v1"
        )
    drawn = draw_cases(cases_of_split, max_cases, seed)
    chosen = [case for case in drawn if case.target not in removed]
    if not chosen:
        raise EvaluationError(
            f"the targets of all {len(drawn)} cases are removed from {bundle_folder}; evaluate another version"
        )
    candidates = Candidates(excludes_history(exclude_history, parts.validation), sampled_negatives, seed)
    candidates.check(chosen, len(dataset.catalogue))
    pool = _pool_of(bundle, bundle_folder, ranking)
    engine = TorchEngine.open(bundle, on)
    protocol = {"split": split, "users": LEAVE_ONE_OUT} | candidates.protocol
    about = protocol | {
        "beam_width": beam_width, "bundle": bundle.info.bundle_id, "items": "beam" if pool is None else "pool",
        "index_version": bundle.index.version, "removed_targets": len(drawn) - len(chosen),
    }  # fmt: skip
    newer = _newer_items(bundle)
    result = empty_result(about, dict(bundle.info.data))
    ranked: dict[Task, TaskRanks] = {}
    with Progress(console=console) as bar:
        for task in Task:
            cases = cases_of(task, chosen)
            if not cases:
                continue
            row = bar.add_task(f"ranking for {task.value}", total=len(cases))
            progress = partial(_show, bar, row)
            rankings: Sequence[RankedItems]
            others: dict[str, NDArray[np.int64]] = {}
            if pool is None or pool.fusion is None or not pool.fusion.has(task):
                rankings = rank_cases(
                    engine, bundle.encoder, cases, task, beam_width=beam_width, candidates=candidates,
                    progress=progress,
                )  # fmt: skip
            else:
                rankings, beams = rank_pools(
                    engine, bundle.encoder, pool, cases, task, beam_width=beam_width, candidates=candidates,
                    progress=progress,
                )  # fmt: skip
                others["beam"] = target_ranks(beams, cases)
                result.setdefault("calibration", {})[task.value] = _calibration(rankings, cases)
            ranks = target_ranks(rankings, cases)
            ranked[task] = TaskRanks.of(_numbered_as(own, dataset, cases), ranks)
            add_task(
                result, task, cases, ranks, dataset.catalogue, parts.train,
                candidates=candidates, seed=seed, others=others,
            )  # fmt: skip
            if len(newer):
                add_newer(result, task, cases, ranks, newer)
            if task is Task.SEARCH:
                result["search_match_share"] = query_match_share(dataset.catalogue, cases, rankings)
    if ranks_file is not None:
        of_run = bundle.info.training.get("seed")  # older bundles do not tell
        run_seed = of_run if isinstance(of_run, int) else 0
        CaseRanks(system, run_seed, fingerprint(own), protocol, ranked).save(ranks_file)
    return result


def _on_items_of(bundle: Bundle, dataset: DataSet, differ: str) -> DataSet:
    """Return the data set on the items of a bundle that was updated since.

    differ: says that their catalogues differ.
    Raises `EvaluationError` if the bundle lacks items.
    """
    try:
        return dataset.on(bundle.index.catalogue)
    except DataError as error:
        raise EvaluationError(
            f"{differ}: {error}; evaluate a bundle on its data set, or add the items by 'gems index update'"
        ) from error


def _numbered_as(own: DataSet, dataset: DataSet, cases: Sequence[Case]) -> list[Case]:
    """Return the cases with targets by the rows of the data set itself, as other systems have them."""
    if own is dataset:
        return list(cases)
    ids = dataset.catalogue.item_ids
    rows = {item_id: row for row, item_id in enumerate(own.catalogue.item_ids)}
    return [replace(case, target=rows[ids[case.target]]) for case in cases]


def _newer_items(bundle: Bundle) -> NDArray[np.int64]:
    """Return the catalogue rows that were added after the training, as far as the bundle tells."""
    pool = bundle.index.pool
    return np.zeros(0, np.int64) if pool is None else pool.fresh_rows


def _pool_of(bundle: Bundle, folder: Path, ranking: Literal["pool", "beam"] | None) -> PoolIndex | None:
    """Return the index of the pool if it is to be ranked."""
    pool = bundle.index.pool
    if ranking == "beam" or (ranking is None and (pool is None or pool.fusion is None)):
        return None
    if pool is None or pool.fusion is None:
        raise EvaluationError(f"{folder} has no weights to rank a pool by; make them with 'gems fuse'")
    return pool


def _calibration(rankings: Sequence[Fused], cases: Sequence[Case]) -> float:
    shares, taken = first_items(
        [each.items for each in rankings],
        [each.relevance for each in rankings],
        [c.target for c in cases],
        10,
    )
    return calibration_error(shares, taken)


def _show(bar: Progress, row: TaskID, done: int, total: int) -> None:
    bar.update(row, completed=done)


def save_evaluation(result: dict[str, Any], path: Path) -> None:
    """Write the result as JSON. Raises `OutputError`."""
    write_json(path, result)
