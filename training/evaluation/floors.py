"""Floors: simple rankings that a useful model must beat.

    popularity                items by their number of training events
    transitions               what people took soon after those of the history (`index.pool.links`), then by popularity
    co_occurrence             what people took together with those items (`training.co_occurrence`), then by popularity
    popularity_in_query       by popularity, but items whose text contains all words of the query come first
    popularity_in_same_query  items by the number of people who chose them for the same query in training; items that
                              nobody chose for it, and items with equal numbers, in the order of popularity_in_query
    bm25                      BM25 (Lucene variant) of the query against the items' texts

`transitions` and `co_occurrence` are for recommendation only, the last three for search only. Two queries are the same
if they have the same words in the same order. Every floor scores all items. Items with equal scores rank in catalogue
order.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from functools import lru_cache, reduce

import bm25s
import numpy as np
from numpy.typing import NDArray

from index.catalogue import Catalogue
from index.pool.links.item_links import ItemLinks
from index.pool.links.transitions import Transitions
from index.pool.query_log import QueryLog
from index.sequence.events import Event, Task
from index.words import QueryWord, query_words, terms, words
from training.co_occurrence import fit_co_occurrence
from training.data.splits import Case, rows_of, searches
from training.evaluation.candidates import EVERYTHING, Candidates
from training.evaluation.scoring import score_ranks

# the tasks that each floor answers
FLOORS: dict[str, tuple[Task, ...]] = {
    "popularity": tuple(Task),
    "transitions": (Task.RECOMMENDATION,),
    "co_occurrence": (Task.RECOMMENDATION,),
    "popularity_in_query": (Task.SEARCH,),
    "popularity_in_same_query": (Task.SEARCH,),
    "bm25": (Task.SEARCH,),
}
LEAST = 1e-9  # less than any score of links: popularity decides between equal ones
Scores = Callable[[Case], NDArray[np.float64]]


def popularity(histories: Sequence[Sequence[Event]], items: int) -> NDArray[np.float64]:
    """Count the events of each item in the training histories: float64 [items]."""
    counts = np.zeros(items)
    for rows in rows_of(histories):
        np.add.at(counts, rows, 1)
    return counts


def floor_scores(task: Task, catalogue: Catalogue, histories: Sequence[Sequence[Event]]) -> dict[str, Scores]:
    """Return the floors of a task by name. Each maps a case to scores, float64 [items], higher is better.

    histories: training events of each person.
    """
    counts = popularity(histories, len(catalogue))
    floors: dict[str, Scores] = {"popularity": lambda case: counts}
    if task is Task.RECOMMENDATION:
        transitions = Transitions.build(rows_of(histories), len(catalogue), most=None)
        together = fit_co_occurrence(rows_of(histories), len(catalogue))
        floors |= {"transitions": _linked(transitions, counts), "co_occurrence": _linked(together, counts)}
    if task is Task.SEARCH:
        matches = _word_matches(catalogue)
        log = QueryLog.build(searches(histories), people=1)  # nothing of it is stored
        more = counts.max() + 1

        def in_query(case: Case) -> NDArray[np.float64]:
            scores: NDArray[np.float64] = matches(case.query or "") * more + counts
            return scores

        def in_same_query(case: Case) -> NDArray[np.float64]:
            scores = in_query(case)
            rows, people = log.chosen(case.query or "")
            scores[rows] += 2 * more * people
            return scores

        floors |= {"popularity_in_query": in_query, "popularity_in_same_query": in_same_query}
        floors["bm25"] = _bm25(catalogue)
    return floors


def _linked(links: ItemLinks, counts: NDArray[np.float64]) -> Scores:
    """Return scores by links from the history, then by popularity."""
    rest = counts / (counts.max() + 1) * LEAST

    def scores(case: Case) -> NDArray[np.float64]:
        rows, linked = links.after([event.item for event in case.history])
        found: NDArray[np.float64] = rest.copy()
        found[rows] += linked
        return found

    return scores


def _word_matches(catalogue: Catalogue) -> Callable[[str], NDArray[np.float64]]:
    """Return a function: query → 1 for an item whose text contains all words of it, else 0, float64 [items]."""
    postings: dict[str, list[int]] = {}
    for row, text in enumerate(catalogue.texts()):
        for term in set(terms(text)):
            postings.setdefault(term, []).append(row)
    arrays = {term: np.array(rows) for term, rows in postings.items()}
    nowhere = np.empty(0, np.int64)

    def rows_with(word: QueryWord) -> NDArray[np.int64]:
        spelled = [
            reduce(np.intersect1d, [arrays.get(term, nowhere) for term in spelling])
            for spelling in word.spellings
        ]
        return np.concatenate(spelled)

    @lru_cache(maxsize=256)  # queries repeat
    def matches(query: str) -> NDArray[np.float64]:
        found = np.zeros(len(catalogue), np.int64)
        asked = query_words(query)
        for word in asked:
            found[rows_with(word)] += 1
        return np.asarray((found == len(asked)) & (found > 0), np.float64)

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
    """Return the rank of each case's target under a floor: int64 [cases], 1-based, 0 beyond `limit`."""
    return score_ranks(
        lambda some: np.stack([scores(case) for case in some]),
        cases,
        limit=limit,
        candidates=candidates,
        batch=64,
    )
