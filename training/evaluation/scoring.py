"""Ranks of the targets from systems that score every item."""

from __future__ import annotations

from collections.abc import Callable, Sequence

import numpy as np
from numpy.typing import NDArray

from training.data.splits import Case
from training.evaluation.candidates import EVERYTHING, Candidates
from training.evaluation.ranking import Progress

# cases → scores, float [cases, items], higher is better
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
    (ranks,) = score_ranks_among(score, cases, (candidates,), limit=limit, batch=batch, progress=progress)
    return ranks


def score_ranks_among(
    score: ScoreCases,
    cases: Sequence[Case],
    candidates: Sequence[Candidates],
    *,
    limit: int = 50,
    batch: int = 256,
    progress: Progress | None = None,
) -> list[NDArray[np.int64]]:
    """Return the ranks of `score_ranks` for each rule of candidates; every case is scored once for all of them."""
    ranks = [np.zeros(len(cases), np.int64) for _ in candidates]
    order = sorted(range(len(cases)), key=lambda k: len(cases[k].history))  # similar lengths share a pass
    for start in range(0, len(order), batch):
        chosen = order[start : start + batch]
        part = [cases[k] for k in chosen]
        scores = score(part)
        for rule, found in zip(candidates, ranks, strict=True):
            found[chosen] = ranks_in(scores, part, limit=limit, candidates=rule)
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

    scores: float [cases, items], higher is better.
    """
    ranks = np.array(
        [_rank(row, case, candidates) for row, case in zip(scores, cases, strict=True)], np.int64
    )
    return np.where(ranks <= limit, ranks, 0)


def _rank(scores: NDArray[np.floating], case: Case, candidates: Candidates) -> int:
    """Return the rank of a case's target: 1-based, 0 if it is no candidate. scores: float [items]."""
    rivals = np.ones(len(scores), bool)
    if (rows := candidates.rows(case, len(scores))) is not None:
        rivals[:] = False
        rivals[rows] = True
    rivals[candidates.excluded(case)] = False
    target = scores[case.target]
    if not rivals[case.target] or not target > -np.inf:  # a score that is no number finds nothing
        return 0
    better, equal = ~(scores <= target) & rivals, (scores == target) & rivals
    return 1 + int(better.sum()) + int(equal[: case.target].sum())
