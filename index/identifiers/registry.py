"""Identifier schemes and quantisers by name: each file of `schemes` is a scheme, each of `quantisers` a quantiser."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Protocol, cast

import numpy as np
from numpy.typing import NDArray

from index.extensions import choices, load_choice
from index.identifiers.codebooks import Codebooks
from index.identifiers.identifiers import Identifiers, ItemsToName, SchemeSettings

SCHEMES = "index.identifiers.schemes"
QUANTISERS = "index.identifiers.quantisers"
WITH_BEHAVIOUR = ("letter",)  # quantisers that need behaviour vectors
SCHEMES_WITH_BEHAVIOUR = ("gensar",)  # schemes that need them


class Scheme(Protocol):
    """A module of `index.identifiers.schemes`; see `index.identifiers.identifiers`."""

    def levels(self, settings: SchemeSettings) -> int:
        """Return L, the largest number of codes of an identifier."""
        ...

    def identifiers(self, items: ItemsToName, settings: SchemeSettings) -> Identifiers:
        """Make the identifiers of a catalogue. Raises `IdentifierError`."""
        ...


def scheme_names() -> list[str]:
    """Return the names of all schemes."""
    return choices(SCHEMES)


def load_scheme(name: str) -> Scheme:
    """Import a scheme. Raises `ValueError`, with the list of schemes, for an unknown name."""
    return cast(Scheme, load_choice(SCHEMES, name))


class Quantiser(Protocol):
    """A module of `index.identifiers.quantisers`."""

    def fit(
        self,
        vectors: NDArray[np.float32],
        sizes: Sequence[int],
        capacity: float,
        seed: int,
        *,
        behaviour: NDArray[np.float32] | None = None,
    ) -> Codebooks:
        """Return codebooks for vectors. The same input gives the same codebooks.

        vectors: float32 [N, d].
        sizes: number of codes of each level. A level with fewer distinct residuals gets fewer codes.
        capacity: see `balancing.balance`.
        behaviour: vectors that a recommender has learned for the same items, float32 [N, k]; rows of NaN for items that
        nobody chose. None if the quantiser is none of `WITH_BEHAVIOUR`.
        Raises `IdentifierError`.
        """
        ...


def quantiser_names() -> list[str]:
    """Return the names of all quantisers."""
    return choices(QUANTISERS)


def follows_behaviour(scheme: str, quantiser: str) -> bool:
    """Whether identifiers of a scheme need behaviour vectors. quantiser: of semantic ones."""
    return scheme in SCHEMES_WITH_BEHAVIOUR or (scheme == "semantic" and quantiser in WITH_BEHAVIOUR)


def load_quantiser(name: str) -> Quantiser:
    """Import a quantiser. Raises `ValueError`, with the list of quantisers, for an unknown name."""
    return cast(Quantiser, load_choice(QUANTISERS, name))
