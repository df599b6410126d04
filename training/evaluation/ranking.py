"""Ranks of the targets from the serving engine."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Protocol

import numpy as np
from numpy.typing import NDArray

from index.sequence.encoder import SequenceEncoder, SequenceError
from index.sequence.events import Task
from index.trie.allowed import Allowed, SlotSet
from server.engine.contract import Engine, Ranking, RankRequest
from training.data.splits import Case, Cases
from training.errors import EvaluationError
from training.evaluation.candidates import EVERYTHING, Candidates

Progress = Callable[[int, int], None]  # called with the number of finished cases and of all cases


class RankedItems(Protocol):
    """A ranking. items: catalogue rows, best first."""

    @property
    def items(self) -> list[int]: ...


PoolOf = Callable[[int, Allowed], Sequence[int]]


def cases_of(task: Task, cases: Sequence[Case]) -> Sequence[Case]:
    """Return the cases that suit the task: search needs a query."""
    if task is Task.RECOMMENDATION:
        return cases
    return cases.with_query() if isinstance(cases, Cases) else [c for c in cases if c.query is not None]


def draw_cases(cases: Sequence[Case], most: int | None, seed: int) -> Sequence[Case]:
    """Draw at most `most` cases, and keep their order. None: all cases."""
    if most is None or most >= len(cases):
        return cases
    return [cases[k] for k in np.sort(np.random.default_rng(seed).permutation(len(cases))[:most])]


def rank_cases(
    engine: Engine,
    encoder: SequenceEncoder,
    cases: Sequence[Case],
    task: Task,
    *,
    beam_width: int = 50,
    limit: int = 50,
    candidates: Candidates = EVERYTHING,
    batch: int = 256,
    progress: Progress | None = None,
    pool_of: PoolOf | None = None,
    state: bool = False,
) -> list[Ranking]:
    """Rank the candidates of each case; rankings are in the order of `cases`.

    The beam is at least as wide as the number of sampled candidates, so these are ranked exactly.

    limit: most items of a ranking.
    batch: cases in one call of the engine.
    pool_of: maps the number of a case, and the items allowed for it, to rows that the engine scores besides the beam.
    state: whether the rankings hold the hidden states.
    Raises `EvaluationError` if a case has no valid prompt or too few candidates.
    """
    rankings: dict[int, Ranking] = {}
    order = sorted(range(len(cases)), key=lambda k: len(cases[k].history))  # similar lengths share a pass
    for start in range(0, len(order), batch):
        chosen = order[start : start + batch]
        requests = []
        for k in chosen:
            case = cases[k]
            try:
                prompt = encoder.prompt(case.history, case.query if task is Task.SEARCH else None)
            except SequenceError as error:
                raise EvaluationError(
                    f"user {case.user_id!r} cannot be tested as {task.value}: {error}"
                ) from error
            allowed = allowed_of(engine.everything_for(task), case, candidates)
            width = beam_width if candidates.negatives is None else max(beam_width, candidates.negatives + 1)
            pool = pool_of(k, allowed) if pool_of else ()
            siblings = limit if pool_of else 0  # as the server asks
            requests.append(
                RankRequest(prompt.ids, limit, width, allowed, siblings=siblings, pool=pool, state=state)
            )
        rankings.update(zip(chosen, engine.rank(requests), strict=True))
        if progress:
            progress(len(rankings), len(order))
    return [rankings[k] for k in range(len(cases))]


def target_ranks(rankings: Sequence[RankedItems], cases: Sequence[Case]) -> NDArray[np.int64]:
    """Return the rank of each case's target: int64 [cases], 1-based, 0 if it was not ranked."""
    return np.array(
        [
            ranking.items.index(case.target) + 1 if case.target in ranking.items else 0
            for ranking, case in zip(rankings, cases, strict=True)
        ],
        np.int64,
    )


def allowed_of(everything: Allowed, case: Case, candidates: Candidates) -> Allowed:
    """Return the items that the engine may return for a case."""
    trie = everything.trie
    rows = candidates.rows(case, trie.items)
    if rows is None:
        return everything.without(candidates.excluded(case))
    chosen = SlotSet.of_members(trie.slot_of_item[rows], trie.items)
    if everything.chosen is not None:
        chosen &= everything.chosen
    return Allowed.of(trie, chosen, candidates.excluded(case))
