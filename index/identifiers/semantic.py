"""Semantic identifiers: residual k-means codes of item embeddings, plus a level that separates collisions.

Residual quantisation as in TIGER (arXiv 2305.05065), with k-means in place of RQ-VAE; formulas in `codebooks`.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray
from sklearn.cluster import KMeans

from index.identifiers import IdentifierError, Identifiers
from index.identifiers.codebooks import Codebooks

COLLISION_LIMIT = 4096
LEAST_NUMBERS = 16  # of the last level, with twice as many as are needed now: items that come later need room


def semantic_identifiers(
    embeddings: NDArray[np.float32], codebooks: Sequence[int] = (256, 256, 256), seed: int = 0
) -> Identifiers:
    """Residual k-means identifiers. Items of one prefix are alike; every item has an identifier of its own.

    embeddings: float32 [N, d], finite.
    codebooks: codes per level; a level gets fewer where there are fewer distinct residuals.
    Returns codes int32 [N, len(codebooks) + 1]; the last level numbers the items of one prefix, and has
    room for as many again.
    Raises `IdentifierError` for NaN or infinite embeddings and for hopelessly colliding ones.
    """
    if embeddings.ndim != 2 or not len(embeddings):
        raise IdentifierError(f"embeddings must have shape [items, dimensions], got {embeddings.shape}")
    bad = np.flatnonzero(~np.isfinite(embeddings).all(axis=1))
    if len(bad):
        raise IdentifierError(f"the embedding of item row {bad[0]} is not finite ({len(bad)} such rows)")
    mean = embeddings.mean(axis=0, dtype=np.float64).astype(np.float32)
    residual = embeddings.astype(np.float32) - mean
    books = []
    for level, size in enumerate(codebooks):
        distinct = len(np.unique(residual.round(6), axis=0))
        kmeans = KMeans(min(size, distinct), n_init=1, max_iter=50, random_state=seed + level).fit(residual)
        books.append(kmeans.cluster_centers_.astype(np.float32))
        residual = residual - books[-1][kmeans.labels_]
    known = Codebooks(mean, tuple(books))
    prefixes = known.quantise(embeddings)
    number = collision_level(prefixes)
    most = int(number.max()) + 1
    if most > COLLISION_LIMIT:
        raise IdentifierError(
            f"{most} items share one identifier prefix (limit {COLLISION_LIMIT}): their texts are the same "
            "or the codebooks too small; use more or larger codebooks, or give the items distinct texts"
        )
    sizes = (*(len(book) for book in books), max(2 * most, LEAST_NUMBERS))
    return Identifiers("semantic", np.column_stack([prefixes, number]).astype(np.int32), sizes, known)


def collision_level(prefixes: NDArray[np.int32]) -> NDArray[np.int32]:
    """Number the items of each prefix 0, 1, … in catalogue order: int32 [N, L] → int32 [N]."""
    _, group = np.unique(prefixes, axis=0, return_inverse=True)
    order = np.argsort(group, kind="stable")
    sorted_group = group[order]
    starts = np.flatnonzero(np.r_[True, sorted_group[1:] != sorted_group[:-1]])
    within = np.arange(len(group)) - np.repeat(starts, np.diff(np.r_[starts, len(group)]))
    number = np.empty(len(group), np.int32)
    number[order] = within
    return number
