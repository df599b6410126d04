"""Semantic identifiers: residual k-means codes of item embeddings, plus a level that separates collisions.

Residual quantisation (as in TIGER, arXiv 2305.05065, with k-means in place of RQ-VAE):

    r_0 = x − mean(x);   c_j = argmin_k ‖r_j − b_{j,k}‖²;   r_{j+1} = r_j − b_{j,c_j}
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray
from sklearn.cluster import KMeans

from index.identifiers import IdentifierError, Identifiers

COLLISION_LIMIT = 4096


def semantic_identifiers(
    embeddings: NDArray[np.float32], codebooks: Sequence[int] = (256, 256, 256), seed: int = 0
) -> Identifiers:
    """Residual k-means identifiers. Items of one prefix are alike; every item has an identifier of its own.

    embeddings: float32 [N, d], finite.
    codebooks: codes per level; a level gets fewer where there are fewer distinct residuals.
    Returns codes int32 [N, len(codebooks) + 1]; the last level numbers the items of one prefix.
    Raises `IdentifierError` for NaN or infinite embeddings and for hopelessly colliding ones.
    """
    if embeddings.ndim != 2 or not len(embeddings):
        raise IdentifierError(f"embeddings must have shape [items, dimensions], got {embeddings.shape}")
    bad = np.flatnonzero(~np.isfinite(embeddings).all(axis=1))
    if len(bad):
        raise IdentifierError(f"the embedding of item row {bad[0]} is not finite ({len(bad)} such rows)")
    residual = embeddings.astype(np.float32) - embeddings.mean(axis=0, dtype=np.float64).astype(np.float32)
    levels = []
    for level, size in enumerate(codebooks):
        distinct = len(np.unique(residual.round(6), axis=0))
        kmeans = KMeans(min(size, distinct), n_init=1, max_iter=50, random_state=seed + level).fit(residual)
        levels.append(kmeans.labels_.astype(np.int32))
        residual = residual - kmeans.cluster_centers_[kmeans.labels_].astype(np.float32)
    codes = np.stack([*levels, collision_level(np.stack(levels, axis=1))], axis=1)
    sizes = tuple(int(size) for size in codes.max(axis=0) + 1)
    if sizes[-1] > COLLISION_LIMIT:
        raise IdentifierError(
            f"{sizes[-1]} items share one identifier prefix (limit {COLLISION_LIMIT}): their texts are the same "
            "or the codebooks too small; use more or larger codebooks, or give the items distinct texts"
        )
    return Identifiers("semantic", codes, sizes)


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
