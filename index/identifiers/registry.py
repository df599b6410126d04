"""Identifier schemes by name: each file of `index.identifiers.schemes` is a scheme."""

from __future__ import annotations

from typing import Protocol, cast

from index.extensions import choices, load_choice
from index.identifiers.identifiers import Identifiers, ItemsToName, SchemeSettings

SCHEMES = "index.identifiers.schemes"


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
