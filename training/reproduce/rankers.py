"""Trained systems as rankers: one pass over the cases gives the full ranking and the one among sampled items."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Protocol

import numpy as np
from numpy.typing import NDArray

from index.sequence.encoder import SequenceEncoder
from index.sequence.events import Task
from index.trie.allowed import Allowed
from server.engine.contract import Engine, Ranking
from training.data.splits import Case
from training.evaluation.candidates import Candidates
from training.evaluation.ranking import Progress, rank_cases, target_ranks
from training.evaluation.scoring import ScoreCases, score_ranks_among

Ranks = NDArray[np.int64]  # rank of each case's target, int64 [cases]: 1-based, 0 if it was not ranked


class Ranker(Protocol):
    """A trained system.

    tasks: what it answers.
    cost: figures of its training, as known: `parameters` (trained weights), `seconds`, `state_bytes` (optimizer).
    """

    @property
    def tasks(self) -> tuple[Task, ...]: ...

    @property
    def cost(self) -> Mapping[str, float]: ...

    def ranks(
        self, task: Task, cases: Sequence[Case], sampled: Candidates, progress: Progress | None = None
    ) -> tuple[Ranks, Ranks]:
        """Rank every case among the whole catalogue, and among its sampled candidates.

        sampled: rule of the sampled candidates. Its `exclude_history` is that of the full ranking, too.
        """
        ...


@dataclass(frozen=True)
class ScoreRanker:
    """A system that scores all items: a floor or a baseline.

    scores: the function of each task that it answers.
    """

    scores: Mapping[Task, ScoreCases]
    cost: Mapping[str, float] = field(default_factory=dict)

    @property
    def tasks(self) -> tuple[Task, ...]:
        return tuple(self.scores)

    def ranks(
        self, task: Task, cases: Sequence[Case], sampled: Candidates, progress: Progress | None = None
    ) -> tuple[Ranks, Ranks]:
        whole = Candidates(sampled.exclude_history)
        full, few = score_ranks_among(self.scores[task], cases, (whole, sampled), progress=progress)
        return full, few


@dataclass(frozen=True)
class EngineRanker:
    """A language model behind the engine that serves.

    The beam ranks the catalogue. The sampled items are scored exactly in the same pass, as the items of a pool are.
    """

    engine: Engine
    encoder: SequenceEncoder
    tasks: tuple[Task, ...]
    beam_width: int
    cost: Mapping[str, float]

    def ranks(
        self, task: Task, cases: Sequence[Case], sampled: Candidates, progress: Progress | None = None
    ) -> tuple[Ranks, Ranks]:
        trie = self.engine.everything_for(task).trie
        drawn: dict[int, list[int]] = {}

        def candidates_of(k: int, allowed: Allowed) -> list[int]:
            rows = sampled.rows(cases[k], trie.items)
            assert rows is not None  # the rule samples
            drawn[k] = np.setdiff1d(rows, sampled.excluded(cases[k])).tolist()
            return drawn[k]

        rankings = rank_cases(
            self.engine, self.encoder, cases, task, beam_width=self.beam_width,
            candidates=Candidates(sampled.exclude_history), progress=progress, pool_of=candidates_of,
        )  # fmt: skip
        few = [_rank_in_pool(case, drawn[k], rankings[k], trie.slot_of_item) for k, case in enumerate(cases)]
        return target_ranks(rankings, cases), np.array(few, np.int64)


def _rank_in_pool(case: Case, rows: Sequence[int], ranking: Ranking, slots: NDArray[np.integer]) -> int:
    """Return the rank of the target among the scored rows; equal scores in the order of identifiers, as in a beam."""
    if case.target not in rows:
        return 0
    scores, places = np.array(ranking.pool_scores), slots[np.asarray(rows)]
    own = list(rows).index(case.target)
    if np.isnan(scores[own]):
        return 0
    earlier = (scores == scores[own]) & (places < places[own])
    return 1 + int((~(scores <= scores[own])).sum()) + int(earlier.sum())
