"""Atomic identifiers: one new token for each item (as in BSR and in the released GEMS code)."""

from __future__ import annotations

import numpy as np

from index.identifiers.identifiers import IdentifierError, Identifiers, ItemsToName, SchemeSettings

ATOMIC_LIMIT = 200_000


def levels(settings: SchemeSettings) -> int:
    """Return 1."""
    return 1


def identifiers(items: ItemsToName, settings: SchemeSettings) -> Identifiers:
    """Number the items; see `atomic_identifiers`."""
    return atomic_identifiers(len(items.titles))


def atomic_identifiers(items: int) -> Identifiers:
    """Return identifiers of one code: item `i` gets `(i,)`; codes int32 [items, 1].

    Raises `IdentifierError` above `ATOMIC_LIMIT` items: the vocabulary would be larger than the rest of the model.
    """
    if items > ATOMIC_LIMIT:
        raise IdentifierError(
            f"{items:,} items are too many for atomic identifiers, which are for {ATOMIC_LIMIT:,} at most: use the "
            "semantic scheme, whose vocabulary does not grow with the catalogue"
        )
    return Identifiers("atomic", np.arange(items, dtype=np.int32)[:, None], (items,))
