"""The scheme that does best for the size of a catalogue: atomic identifiers for small ones, semantic for large ones.

A row of its own for each item ranks better on Amazon Beauty (docs/decisions.md), but the rows of a large catalogue are
larger than the rest of the model, and most of its items have too few events to learn one.
"""

from __future__ import annotations

from index.identifiers.identifiers import Identifiers, ItemsToName, SchemeSettings
from index.identifiers.schemes import atomic, semantic

MOST_ATOMIC = 50_000  # items


def levels(settings: SchemeSettings) -> int:
    """Return the levels of semantic identifiers: atomic ones have fewer."""
    return semantic.levels(settings)


def identifiers(items: ItemsToName, settings: SchemeSettings) -> Identifiers:
    """Make identifiers of the scheme for as many items; `Identifiers.scheme` tells which."""
    if len(items.titles) <= MOST_ATOMIC:
        return atomic.identifiers(items, settings)
    return semantic.identifiers(items, settings)
