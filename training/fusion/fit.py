"""The fit of a fusion: rankings of validation cases → weights, a suggested cut-off, and their figures."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray
from rich.console import Console
from rich.progress import Progress

from index.pool.fusion import Fusion, TaskFusion, relevance
from index.pool.pool_index import PoolIndex
from index.sequence.encoder import SequenceEncoder
from index.sequence.events import Task
from server.engine.contract import Engine
from training.data.splits import Case, takes_again
from training.evaluation.ranking import cases_of, draw_cases
from training.fusion.cases import fit_cases
from training.fusion.choices import Ranked, rank_choices
from training.fusion.logit import fit_weights

MOST_CASES = 1000  # logged cases of a task
LEAST_CASES = 20  # fewer say nothing
SHOWN = 10  # items of an answer, in the figures
FRESH_SHARE = 0.1  # of what people take, by default
LOST = 0.01  # share of the found targets that the suggested cut-off may lose


def fit_fusion(
    engine: Engine,
    encoder: SequenceEncoder,
    index: PoolIndex,
    validation: Sequence[Case],
    *,
    beam_width: int = 50,
    fresh_share: float = FRESH_SHARE,
    later: Sequence[int] = (),
    seed: int = 0,
    console: Console | None = None,
) -> Fusion:
    """Fit the weights of both tasks. A task with fewer than `LEAST_CASES` cases gets none.

    fresh_share: share of new items among those that people take, in (0, 1).
    later: rows of items that came after the log.
    """
    repeats = takes_again(validation)
    tasks: dict[Task, TaskFusion] = {}
    with Progress(console=console) as bar:
        for task in Task:
            logged = cases_of(task, draw_cases(validation, MOST_CASES, seed))
            if len(logged) < LEAST_CASES:
                continue
            row = bar.add_task(f"fusion for {task.value}", total=1.0)
            ranked = rank_choices(
                engine, encoder, index, task, fit_cases(task, logged, index.catalogue, index.lexical.attributes, seed),
                beam_width=beam_width, exclude_history=not repeats, fresh_share=fresh_share, later=later, seed=seed,
                progress=lambda done, total, row=row: bar.update(row, completed=done / total),  # type: ignore[misc]
            )  # fmt: skip
            tasks[task] = _fitted(task, ranked, fresh_share)
    return Fusion(tasks)


def _fitted(task: Task, ranked: Sequence[Ranked], fresh_share: float) -> TaskFusion:
    weights = fit_weights(task, [each.choice for each in ranked])
    fusion = Fusion({task: TaskFusion(weights)})
    item, nothing = fusion.item_weights(task), fusion.nothing_weights(task)
    shares = [relevance(each.choice.signals @ item, float(each.choice.nothing @ nothing)) for each in ranked]
    logged = [k for k, each in enumerate(ranked) if each.case.kind == "logged" and not each.simulated]
    cutoff = _cutoff([shares[k] for k in logged], [ranked[k].choice.target for k in logged])
    figures: dict[str, Any] = {"cases": len(logged), "fresh_share": fresh_share, "found": {}}
    for kind, simulated in sorted({(each.case.kind, each.simulated) for each in ranked}):
        chosen = [k for k, each in enumerate(ranked) if (each.case.kind, each.simulated) == (kind, simulated)]
        if kind == "nonsense":
            left = [int((shares[k] >= cutoff).sum()) for k in chosen]
            figures["nonsense_above_cutoff"] = round(float(np.mean(np.minimum(left, SHOWN))), 2)
            continue
        hits = [_place(shares[k], ranked[k].choice.target) < SHOWN for k in chosen]
        weight = [ranked[k].choice.weight for k in chosen]
        name = f"{kind}, with fresh items" if simulated else kind
        figures["found"][name] = round(float(np.average(hits, weights=weight)), 4)
    beam = [_place(ranked[k].choice.signals[:, 0], ranked[k].choice.target) < SHOWN for k in logged]
    figures["found_by_code_alone"] = round(float(np.mean(beam)), 4)
    return TaskFusion(weights, cutoff, figures)


def _place(scores: NDArray[np.float64], target: int | None) -> float:
    """Return how many candidates score higher than the target; infinity if it is not among them."""
    return np.inf if target is None else float((scores > scores[target]).sum())


def _cutoff(shares: Sequence[NDArray[np.float64]], targets: Sequence[int | None]) -> float:
    """Return the relevance below which `LOST` of the targets among the first `SHOWN` lie."""
    found = [
        float(share[target])
        for share, target in zip(shares, targets, strict=True)
        if target is not None and _place(share, target) < SHOWN
    ]
    return float(np.quantile(found, LOST)) if found else 0.0
