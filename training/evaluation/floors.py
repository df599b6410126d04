"""Floors: what a ranking must beat before it means anything (DESIGN §8).

    popularity           items by how often people chose them in training
    popularity_in_query  the same, items that match the query first (search only)
    bm25                 BM25 (Lucene variant) of the query against the items' texts (search only)

Every floor scores all items; the rank of a target counts the items with a higher score and, of the
equal ones, those before it in catalogue order.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from functools import lru_cache

import bm25s
import numpy as np
from numpy.typing import NDArray

from index.catalogue import Catalogue
from index.sequence.events import Event, Task
from training.data.splits import Case
from training.data.text import words
from training.evaluation.candidates import EVERYTHING, Candidates
from training.evaluation.scoring import score_ranks

Scores = Callable[[Case], NDArray[np.float64]]


def popularity(histories: Sequence[Sequence[Event]], items: int) -> NDArray[np.float64]:
    """How often each item occurs in the training histories: float64 [items]."""
    rows = [event.item for history in histories for event in history]
    return np.bincount(rows, minlength=items).astype(np.float64)


def floor_scores(task: Task, catalogue: Catalogue, counts: NDArray[np.float64]) -> dict[str, Scores]:
    """The floors of a task by name; each maps a case to scores float64 [items], higher is better."""
    floors: dict[str, Scores] = {"popularity": lambda case: counts}
    if task is Task.SEARCH:
        matches = _word_matches(catalogue)
        floors["popularity_in_query"] = lambda case: matches(case.query or "") * (counts.max() + 1) + counts
        floors["bm25"] = _bm25(catalogue)
    return floors


def _word_matches(catalogue: Catalogue) -> Callable[[str], NDArray[np.float64]]:
    """query → 1 where an item's text holds all of its words, else 0: float64 [items]."""
    postings: dict[str, list[int]] = {}
    for row, text in enumerate(catalogue.texts()):
        for word in set(words(text)):
            postings.setdefault(word, []).append(row)
    arrays = {word: np.array(rows) for word, rows in postings.items()}

    @lru_cache(maxsize=256)  # queries repeat
    def matches(query: str) -> NDArray[np.float64]:
        distinct = set(words(query))
        found = np.zeros(len(catalogue))
        for word in distinct & arrays.keys():
            found[arrays[word]] += 1
        share: NDArray[np.float64] = np.where(found > 0, found == len(distinct), 0.0)
        return share

    return matches


def _bm25(catalogue: Catalogue) -> Scores:
    retriever = bm25s.BM25()
    retriever.index([words(text) for text in catalogue.texts()], show_progress=False)

    @lru_cache(maxsize=256)
    def scores(query: str) -> NDArray[np.float64]:
        known = words(query)
        return np.asarray(retriever.get_scores(known), np.float64) if known else np.zeros(len(catalogue))

    return lambda case: scores(case.query or "")


def floor_ranks(
    scores: Scores, cases: Sequence[Case], limit: int = 50, candidates: Candidates = EVERYTHING
) -> NDArray[np.int64]:
    """Rank of each case's target under a floor: int64 [cases], 1-based, 0 below `limit`."""
    return score_ranks(
        lambda some: np.stack([scores(case) for case in some]),
        cases,
        limit=limit,
        candidates=candidates,
        batch=64,
    )
