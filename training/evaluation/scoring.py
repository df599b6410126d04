"""Ranks of the targets from systems that score every item."""

from __future__ import annotations

from collections.abc import Callable, Sequence

import numpy as np
from numpy.typing import NDArray

from training.data.splits import Case
from training.evaluation.candidates import EVERYTHING, Candidates
from training.evaluation.ranking import Progress

# cases → scores, float [cases, items], higher is better; the caller may change the array
ScoreCases = Callable[[Sequence[Case]], NDArray[np.floating]]


def score_ranks(
    score: ScoreCases,
    cases: Sequence[Case],
    *,
    limit: int = 50,
    candidates: Candidates = EVERYTHING,
    batch: int = 256,
    progress: Progress | None = None,
) -> NDArray[np.int64]:
    """Return the rank of each case's target among the candidates: int64 [cases], 1-based, 0 beyond `limit`.

    Items with equal scores rank in catalogue order.

    batch: cases in one call of `score`.
    """
    ranks = np.zeros(len(cases), np.int64)
    order = sorted(range(len(cases)), key=lambda k: len(cases[k].history))  # similar lengths share a pass
    for start in range(0, len(order), batch):
        chosen = order[start : start + batch]
        part = [cases[k] for k in chosen]
        ranks[chosen] = ranks_in(score(part), part, limit=limit, candidates=candidates)
        if progress:
            progress(start + len(chosen), len(order))
    return ranks


def ranks_in(
    scores: NDArray[np.floating],
    cases: Sequence[Case],
    *,
    limit: int = 50,
    candidates: Candidates = EVERYTHING,
) -> NDArray[np.int64]:
    """Return the rank of each case's target by scores that are known, as `score_ranks` does: int64 [cases].

    scores: float [cases, items], higher is better; the array is changed.
    """
    ranks = np.zeros(len(cases), np.int64)
    for k, (row, case) in enumerate(zip(scores, cases, strict=True)):
        if (rivals := candidates.rows(case, len(row))) is not None:
            row[np.delete(np.arange(len(row)), rivals)] = -np.inf
        row[candidates.excluded(case)] = -np.inf
        target = row[case.target]
        if target == -np.inf:
            continue
        rank = 1 + int((row > target).sum()) + int((row[: case.target] == target).sum())
        ranks[k] = rank if rank <= limit else 0
    return ranks
