"""Pools for tiny bundles."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
from numpy.typing import NDArray

from index.catalogue import Catalogue
from index.pool.dense import DenseHead, DenseIndex
from index.pool.fusion import ITEM_SIGNALS, NOTHING_SIGNALS, Fusion, TaskFusion
from index.pool.links.transitions import Transitions
from index.pool.pool_index import PoolIndex
from index.sequence.events import Task
from training.co_occurrence import fit_co_occurrence

WEIGHTS = {
    "code": 0.2, "popularity": 0.2, "query_log": 3.0, "transitions": 0.5, "co_occurrence": 0.4, "likeness": 0.4,
    "dense": 0.3, "fresh_likeness": 0.5, "fresh_dense": 0.6, "bm25": 0.5, "all_words": 1.0, "title_share": 0.6,
    "exact_title": 3.0, "exact_attribute": 6.0, "exact_category": 0.9, "fresh": -1.0, "fresh_bm25": 0.8,
    "fresh_all_words": 1.1, "fresh_title_share": 0.7, "fresh_exact_title": 4.0, "fresh_exact_attribute": 7.0,
    "fresh_exact_category": 0.8, "nothing": -1.0, "unknown_words": 5.0,
}  # fmt: skip


def make_fusion() -> Fusion:
    """Return weights of both tasks."""
    return Fusion(
        {
            task: TaskFusion(
                {n: WEIGHTS[n] for n in (*ITEM_SIGNALS[task], *NOTHING_SIGNALS[task])},
                0.01,
                {"cases": 50, "found": {}, "found_by_code_alone": 0.5},
            )
            for task in Task
        }
    )


def make_dense(vectors: NDArray[np.float32], states: int, seed: int = 0) -> DenseIndex:
    """Return random maps and the rows of items. vectors: float32 [N, d_x]. states: width of hidden states."""
    rng = np.random.default_rng(seed)
    heads = [
        DenseHead(
            rng.normal(0, 0.1, (8, states)).astype(np.float32),
            rng.normal(0, 0.5, (8, vectors.shape[1])).astype(np.float32),
            vectors.mean(axis=0),
        )
        for _ in range(2)
    ]
    return DenseIndex(heads[0], heads[0].rows(vectors), heads[1].rows(vectors), len(vectors))


def make_pool(catalogue: Catalogue, dense: DenseIndex | None = None) -> PoolIndex:
    """Return a pool in which two people chose row 5 for "silent letter", and row k has (7 k) mod 23 events.

    Two people took row 11 and then row 20; one of them, then row 30.
    """
    log = [("u1", "silent letter", 5), ("u2", "Silent Letter", 5), ("u1", "rare", 3)]
    counts = np.arange(len(catalogue)) * 7 % 23
    histories = [[11, 20], [11, 20, 30]]
    transitions = Transitions.build(histories, len(catalogue))
    pool = PoolIndex.build(
        catalogue,
        log,
        counts,
        transitions=transitions,
        co_occurrence=fit_co_occurrence(histories, len(catalogue)),
    )
    return replace(pool, dense=dense, fusion=make_fusion())
