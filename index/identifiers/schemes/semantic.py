"""Semantic identifiers: codes of item embeddings, and a last level that separates items with the same codes.

Similar items get similar codes. Residual quantisation as in TIGER (arXiv 2305.05065), by one of
`index.identifiers.quantisers`; see `codebooks` for the formulas.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray

from index.identifiers.codebooks import Codebooks
from index.identifiers.identifiers import IdentifierError, Identifiers, ItemsToName, SchemeSettings
from index.identifiers.registry import load_quantiser

COLLISION_LIMIT = 4096
LEAST_NUMBERS = 16  # least size of the last level, which is otherwise twice the need: later items need room
CAPACITY = 2.0


def levels(settings: SchemeSettings) -> int:
    """Return one level for each codebook, and one that separates collisions."""
    return len(settings.codebooks) + 1


def identifiers(items: ItemsToName, settings: SchemeSettings) -> Identifiers:
    """Quantise the items' vectors; see `semantic_identifiers`."""
    return semantic_identifiers(
        items.vectors,
        settings.codebooks,
        settings.seed,
        quantiser=settings.quantiser,
        capacity=settings.code_capacity,
        behaviour=items.behaviour,
    )


def semantic_identifiers(
    embeddings: NDArray[np.float32],
    codebooks: Sequence[int] = (256, 256, 256),
    seed: int = 0,
    *,
    quantiser: str = "kmeans",
    capacity: float = CAPACITY,
    behaviour: NDArray[np.float32] | None = None,
) -> Identifiers:
    """Return identifiers from quantised embeddings: codes int32 [N, len(codebooks) + 1], one identifier for each item.

    Items with a common prefix are similar. The last level numbers the items of one prefix, and has room for as many
    more.
    embeddings: float32 [N, d], finite.
    codebooks: number of codes of each level. A level with fewer distinct residuals gets fewer codes.
    capacity: limit of the items of a code, as a multiple of the mean of its level (see `balancing`).
    behaviour: see `registry.Quantiser`.
    Raises `IdentifierError` for NaN or infinite embeddings, for more items than identifiers, and for more than
    `COLLISION_LIMIT` items with the same codes.
    """
    check_embeddings(embeddings, codebooks)
    vectors = embeddings.astype(np.float32)
    known = load_quantiser(quantiser).fit(vectors, codebooks, capacity, seed, behaviour=behaviour)
    return numbered(known, known.quantise(vectors))


def check_embeddings(embeddings: NDArray[np.float32], codebooks: Sequence[int]) -> None:
    """Raise `IdentifierError` unless embeddings can be named by codebooks of these sizes and a last level."""
    if embeddings.ndim != 2 or 0 in embeddings.shape:
        raise IdentifierError(f"embeddings must have shape [items, dimensions], got {embeddings.shape}")
    bad = np.flatnonzero(~np.isfinite(embeddings).all(axis=1))
    if len(bad):
        raise IdentifierError(f"the embedding of item row {bad[0] + 1} is not finite ({len(bad)} such rows)")
    names = COLLISION_LIMIT * int(np.prod(codebooks, dtype=object))
    if len(embeddings) > names:
        raise IdentifierError(
            f"codebooks of {' × '.join(map(str, codebooks))} codes and {COLLISION_LIMIT} numbers behind them name "
            f"{names} items; row {names + 1} and those after it of {len(embeddings)} would have no identifier: use "
            "more or larger codebooks"
        )


def numbered(known: Codebooks, prefixes: NDArray[np.int32]) -> Identifiers:
    """Return identifiers from prefixes, with a last level that numbers equal prefixes.

    prefixes: int32 [N, levels].
    Raises `IdentifierError` if more than `COLLISION_LIMIT` items have the same prefix.
    """
    number = collision_level(prefixes)
    most = int(number.max()) + 1
    if most > COLLISION_LIMIT:
        row = int(np.flatnonzero(number == COLLISION_LIMIT)[0]) + 1
        raise IdentifierError(
            f"{most} items share one identifier prefix (limit {COLLISION_LIMIT}, passed at item row {row}): their "
            "texts are the same or the codebooks too small; use more or larger codebooks, or give the items "
            "distinct texts"
        )
    sizes = (*(len(book) for book in known.levels), max(2 * most, LEAST_NUMBERS))
    return Identifiers("semantic", np.column_stack([prefixes, number]).astype(np.int32), sizes, known)


def collision_level(prefixes: NDArray[np.int32]) -> NDArray[np.int32]:
    """Return the number of each item within its prefix, 0, 1, … in catalogue order: int32 [N, L] → int32 [N]."""
    _, group = np.unique(prefixes, axis=0, return_inverse=True)
    order = np.argsort(group, kind="stable")
    sorted_group = group[order]
    starts = np.flatnonzero(np.r_[True, sorted_group[1:] != sorted_group[:-1]])
    within = np.arange(len(group)) - np.repeat(starts, np.diff(np.r_[starts, len(group)]))
    number = np.empty(len(group), np.int32)
    number[order] = within
    return number
