"""Balanced codes: no code of a level has more than `capacity` times the mean number of items.

In many dimensions the k-means objective hardly depends on the number of items of a code: a cluster of n nearly
orthogonal residuals of norm σ lowers it by σ², and so does a single outlier. Then many codes have one item, and a few
have hundreds. A limit adds almost no distortion. It is an optimal transport with bounded marginals:

    min_assignment Σ_i ‖v_i − b_{c_i}‖²   such that every code has at most `limit` items

Its dual variables are prices p_k ≥ 0, one for each code, and zero below the limit. They lead to the assignment
argmin_k ‖v − b_k‖² + p_k, a rule that also works for later items (cells of a power diagram). The prices are found by
Sinkhorn iterations (Cuturi, arXiv 1306.0895) with falling temperature, clipped at zero because the marginals are
bounds. Alternating these with k-means updates of the codes gives balanced k-means.
"""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from index.identifiers.codebooks import costs

ROUNDS = 6  # rounds of prices and means
STEPS = 20  # Sinkhorn steps at each temperature
COARSE, FINE = (0.1,), (0.1, 0.03, 0.01, 0.003)  # temperatures, as a share of the spread of an item's costs


def balance(
    vectors: NDArray[np.float32], book: NDArray[np.float32], capacity: float
) -> tuple[NDArray[np.float32], NDArray[np.float32]]:
    """Move and price the codes of a level until none has more than about `capacity` times the mean number of items.

    vectors: float32 [N, h].
    book: float32 [K, h], the codes.
    capacity: 1 or more; with infinity the codes do not change.
    A code without items restarts at another place. Equal vectors always share a code, even above the limit.
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


def prices_of(cost: NDArray[np.float32], capacity: float) -> NDArray[np.float32]:
    """Return the prices of codes that stay where they are, float32 [K].

    cost: of each item and code, float32 [N, K].
    capacity: as in `balance`.
    """
    items, codes = cost.shape
    prices, limit = np.zeros(codes, np.float32), max(1.0, capacity * items / codes)
    return prices if limit >= items else _prices(cost, limit, prices, (*COARSE, *FINE))


def _prices(
    cost: NDArray[np.float32], limit: float, prices: NDArray[np.float32], temperatures: tuple[float, ...]
) -> NDArray[np.float32]:
    """Return the dual variables of the bounded transport, float32 [K].

    cost: float32 [N, K].
    prices: float32 [K], the first guess.
    """
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
    """Return each code at the mean of its vectors; a code without vectors moves to a vector far from its own code.

    Each vector is taken once. If there are fewer than such codes, the last ones stay where they are.
    """
    count = np.bincount(code, minlength=len(book))
    order = np.argsort(code, kind="stable")
    first = np.searchsorted(code[order], np.arange(len(book)))
    total = np.add.reduceat(np.vstack([vectors[order], np.zeros_like(vectors[:1])]), first, axis=0)
    moved = total / np.maximum(count, 1)[:, None]
    dead = np.flatnonzero(count == 0)
    if len(dead):
        far = ((vectors - book[code]) ** 2).sum(axis=1)
        moved[dead] = book[dead]
        moved[dead[: len(vectors)]] = vectors[np.argsort(-far, kind="stable")[: len(dead)]]
    return moved.astype(np.float32)
