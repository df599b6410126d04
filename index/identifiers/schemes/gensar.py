"""Two identifiers an item, chosen by the task: one follows meaning, the other behaviour (GenSAR, arXiv 2504.05730).

    search:           shared codes, codes of what is left of the text, and a number
    recommendation:   shared codes, codes of what is left of the behaviour, and a number

The first half of the levels is shared, so that both begin alike; on the others each kind has codes of its own. The last
level separates items with the same codes, as for semantic identifiers. See `two_views` for the formulas.

An item that nobody chose has no behaviour. It gets the one that a ridge regression predicts from its text; so do items
that come later, of which nothing but the text is known: the regression is part of the codebooks.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray

from index.identifiers.codebooks import Layer
from index.identifiers.identifiers import IdentifierError, Identifiers, ItemsToName, SchemeSettings
from index.identifiers.ridge import ridge
from index.identifiers.schemes.semantic import CAPACITY, check_embeddings, numbered

RIDGE = 0.1  # of the mean eigenvalue of the scatter of text vectors


def levels(settings: SchemeSettings) -> int:
    """Return one level for each codebook, and one that separates collisions.

    Raises `IdentifierError` for fewer than two codebooks.
    """
    shared_levels(settings.codebooks)
    return len(settings.codebooks) + 1


def shared_levels(codebooks: Sequence[int]) -> int:
    """Return how many of the codebooks are shared by both identifiers: the first half, or one more than the others.

    Raises `IdentifierError` for fewer than two codebooks.
    """
    if len(codebooks) < 2:
        raise IdentifierError(
            "gensar identifiers need two codebooks or more: the first half is shared, the others are of one task"
        )
    return -(-len(codebooks) // 2)


def identifiers(items: ItemsToName, settings: SchemeSettings) -> Identifiers:
    """Quantise the items' vectors and behaviour; see `gensar_identifiers`."""
    if items.behaviour is None:
        raise IdentifierError("gensar identifiers need behaviour vectors of the items")
    return gensar_identifiers(
        items.vectors, items.behaviour, settings.codebooks, settings.seed, capacity=settings.code_capacity
    )


def gensar_identifiers(
    embeddings: NDArray[np.float32],
    behaviour: NDArray[np.float32],
    codebooks: Sequence[int] = (256, 256, 256, 256),
    seed: int = 0,
    *,
    capacity: float = CAPACITY,
) -> Identifiers:
    """Return two identifiers for each item, each one different from all others of its kind.

    embeddings: of texts, float32 [N, d], finite.
    behaviour: vectors that a recommender has learned, float32 [N, k]; rows of NaN for items that nobody chose.
    codebooks: number of codes of each level, on levels that are not shared of each kind.
    capacity: see `balancing`.
    Raises `IdentifierError` for fewer than two codebooks, if nobody chose any item, and as `semantic_identifiers`.
    """
    from index.identifiers.two_views import fit_two_views  # imports torch, which settings do without

    shared = shared_levels(codebooks)
    check_embeddings(embeddings, codebooks)
    chosen = np.isfinite(behaviour).all(axis=1)
    if not chosen.any():
        raise IdentifierError("gensar identifiers need behaviour, and nobody chose any item")
    vectors = embeddings.astype(np.float32)
    later = _guess(vectors[chosen], behaviour[chosen])
    both = vectors @ later.weight + later.bias
    both[:, : vectors.shape[1]] = vectors
    both[chosen, vectors.shape[1] :] = behaviour[chosen]
    of_text, of_behaviour = fit_two_views(
        vectors, both[:, vectors.shape[1] :], codebooks[:shared], codebooks[shared:], capacity, seed
    )
    search = numbered(of_text, of_text.quantise(both))
    known = numbered(of_behaviour, of_behaviour.quantise(both))
    numbers = max(search.codebook_sizes[-1], known.codebook_sizes[-1])
    return Identifiers(
        "gensar",
        known.codes,
        (*of_behaviour.ends, numbers),
        of_behaviour,
        search_codes=search.codes,
        search_codebooks=of_text,
    ).behind(later)


def _guess(vectors: NDArray[np.float32], behaviour: NDArray[np.float32]) -> Layer:
    """Return the map of text vectors to themselves and the behaviour that they let expect: [n, d] → [n, d + k]."""
    mean, centre, weight = ridge(vectors, behaviour, RIDGE)
    width = vectors.shape[1]
    bias = np.concatenate([np.zeros(width), centre - mean @ weight])
    return Layer(np.concatenate([np.eye(width), weight], axis=1).astype(np.float32), bias.astype(np.float32))
