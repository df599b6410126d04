"""The fit of co-occurrence: what people took together in a training log → links from items to items.

    x_j  ≈ Σ_{i ∈ S_j} w_ij x_i                       x_pj = 1 if person p took item j
    w_·j = argmin_w |x_j − X_S w|² + RIDGE |w|²
         = (G_SS + RIDGE · I)⁻¹ G_Sj                  G = Xᵀ X: how many people took both

S_j are the `PREDICTORS` items with the largest g_ij / √(g_ii + 1). This is SLIM with selected features (Ning and
Karypis, ICDM 2011), with the penalty of EASE (Steck, arXiv 1905.03375): a solution in closed form for each item, so
that its cost grows with the number of items, not with its cube.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence

import numpy as np
from numpy.typing import NDArray
from rich.console import Console
from rich.progress import track
from scipy.sparse import csr_array

from index.pool.links.co_occurrence import CoOccurrence

RIDGE = 50.0  # people
PREDICTORS = 64  # of an item at most
MOST_EVENTS = 1_000  # of a person, the last ones
MOST_PAIRS = 100_000_000  # of events of one person; of a larger log people are drawn


def fit_co_occurrence(
    histories: Iterable[Sequence[int]], items: int, *, seed: int = 0, console: Console | None = None
) -> CoOccurrence:
    """Fit the links of a log.

    histories: catalogue rows of each person's events, oldest first.
    console: None shows no progress.
    """
    taken = _taken(histories, items, seed)
    together = csr_array(taken.T @ taken)
    people = together.diagonal()
    found: list[tuple[NDArray[np.int64], NDArray[np.int64], NDArray[np.float32]]] = []
    some = np.flatnonzero(people).tolist()
    for item in track(some, "co-occurrence", console=console, disable=console is None, transient=True):
        span = slice(together.indptr[item], together.indptr[item + 1])
        predictors, both = together.indices[span].astype(np.int64), together.data[span]
        other = predictors != item
        predictors, both = predictors[other], both[other]
        if len(predictors) > PREDICTORS:
            near = np.argsort(-both / np.sqrt(people[predictors] + 1), kind="stable")[:PREDICTORS]
            predictors, both = predictors[near], both[near]
        gram = together[predictors][:, predictors].toarray() + RIDGE * np.eye(len(predictors))
        weights = np.linalg.solve(gram, both).astype(np.float32)
        found.append((predictors, np.full(len(predictors), item), weights))
    nothing = np.empty(0, np.int64)
    owner, follower = (np.concatenate([nothing, *(each[k] for each in found)]) for k in (0, 1))
    weight = np.concatenate([np.empty(0, np.float32), *(each[2] for each in found)])
    order = np.lexsort((follower, owner))
    return CoOccurrence.of(items, owner[order], follower[order], weight[order])


def _taken(histories: Iterable[Sequence[int]], items: int, seed: int) -> csr_array:
    """Return which items each person took: float64 [people, items], 1 or nothing."""
    rows = [np.unique(np.asarray(history, np.int64)[-MOST_EVENTS:]) for history in histories]
    length = np.array([len(each) for each in rows], np.int64)
    order = np.random.default_rng(seed).permutation(len(rows))
    inside = order[np.cumsum(length[order] ** 2) <= MOST_PAIRS]
    rows = [rows[person] for person in np.sort(inside).tolist()]
    columns = np.concatenate([np.empty(0, np.int64), *rows])
    offsets = np.cumsum([0, *map(len, rows)])
    return csr_array((np.ones(len(columns)), columns, offsets), shape=(len(rows), items))
