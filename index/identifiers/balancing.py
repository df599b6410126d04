"""Codes that share the items evenly: no code of a level names more than `capacity` times the mean.

In many dimensions the k-means objective hardly cares how many items a code has: n nearly orthogonal residuals of
norm σ lower it by σ² as one cluster, and so does a single outlier. Many codes then name one item, a few name
hundreds. A limit costs next to no distortion, and is an optimal transport with bounded marginals:

    min_assignment Σ_i ‖v_i − b_{c_i}‖²   such that every code has at most `limit` items

Its dual variables are prices p_k ≥ 0, one a code and zero below the limit, and the assignment they lead to is
argmin_k ‖v − b_k‖² + p_k: a rule that holds for items that come later, too (cells of a power diagram). They are
found by Sinkhorn iterations (Cuturi, arXiv 1306.0895) with falling temperature, clipped at zero because the
marginals are bounds; alternated with means, they make balanced k-means.
"""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from index.identifiers.codebooks import costs

ROUNDS = 6  # of prices and means
STEPS = 20  # of Sinkhorn at each temperature
COARSE, FINE = (0.1,), (0.1, 0.03, 0.01, 0.003)  # temperatures, as a share of the spread of an item's costs


def balance(
    vectors: NDArray[np.float32], book: NDArray[np.float32], capacity: float
) -> tuple[NDArray[np.float32], NDArray[np.float32]]:
    """Move the codes of a level, and price them, until none names more than about `capacity` times the mean.

    vectors: float32 [N, h]. book: float32 [K, h]. capacity: 1 or more; infinity leaves codes as they are.
    Codes that name nothing start anew elsewhere; equal vectors share a code whatever it costs.
    Returns the codes and their prices, float32 [K, h] and [K].
    """
    prices = np.zeros(len(book), np.float32)
    limit = max(1.0, capacity * len(vectors) / len(book))
    if limit >= len(vectors):
        return book, prices
    for _ in range(ROUNDS):
        prices = _prices(costs(vectors, book, np.zeros_like(prices)), limit, prices, COARSE)
        book = _moved(vectors, costs(vectors, book, prices).argmin(axis=1), book)
    return book, _prices(costs(vectors, book, np.zeros_like(prices)), limit, prices, FINE)


def _prices(
    cost: NDArray[np.float32], limit: float, prices: NDArray[np.float32], temperatures: tuple[float, ...]
) -> NDArray[np.float32]:
    """Dual variables of the bounded transport, from a first guess: float32 [N, K], [K] → [K]."""
    spread = float(cost.std(axis=1).mean())
    for temperature in temperatures:
        scale = max(temperature * spread, 1e-12)
        for _ in range(STEPS):
            share = (cost + prices) / -scale
            share -= share.max(axis=1, keepdims=True)
            np.exp(share, out=share)
            share /= share.sum(axis=1, keepdims=True)
            load = np.maximum(share.sum(axis=0), 1e-9)
            prices = np.maximum(prices + scale * np.log(load / limit), 0).astype(np.float32)
    return prices


def _moved(
    vectors: NDArray[np.float32], code: NDArray[np.int64], book: NDArray[np.float32]
) -> NDArray[np.float32]:
    """Each code at the mean of its vectors; one without any at a vector that lies far from its own code."""
    count = np.bincount(code, minlength=len(book))
    order = np.argsort(code, kind="stable")
    first = np.searchsorted(code[order], np.arange(len(book)))
    total = np.add.reduceat(np.vstack([vectors[order], np.zeros_like(vectors[:1])]), first, axis=0)
    moved = total / np.maximum(count, 1)[:, None]
    dead = np.flatnonzero(count == 0)
    if len(dead):
        far = ((vectors - book[code]) ** 2).sum(axis=1)
        moved[dead] = vectors[np.argsort(-far, kind="stable")[: len(dead)]]
    return moved.astype(np.float32)
