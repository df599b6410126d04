"""Atomic identifiers: one new token per item (BSR; also what the released GEMS code does)."""

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
    """Item `i` gets the one-code identifier `(i,)`: codes int32 [items, 1].

    Raises `IdentifierError` above `ATOMIC_LIMIT` items, where the vocabulary would outgrow the model.
    """
    if items > ATOMIC_LIMIT:
        raise IdentifierError(f"{items} items are too many for atomic identifiers; use the semantic scheme")
    return Identifiers("atomic", np.arange(items, dtype=np.int32)[:, None], (items,))
