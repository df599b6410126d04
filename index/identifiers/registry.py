"""Identifier schemes by name: each file of `index.identifiers.schemes` is one."""

from __future__ import annotations

from typing import Protocol, cast

from index.extensions import choices, load_choice
from index.identifiers.identifiers import Identifiers, ItemsToName, SchemeSettings

SCHEMES = "index.identifiers.schemes"


class Scheme(Protocol):
    """A module of the package; see `index.identifiers.identifiers`."""

    def levels(self, settings: SchemeSettings) -> int:
        """Return L, the number of codes of an identifier."""
        ...

    def identifiers(self, items: ItemsToName, settings: SchemeSettings) -> Identifiers:
        """Make the identifiers of a catalogue. Raises `IdentifierError`."""
        ...


def scheme_names() -> list[str]:
    """Return the names of all schemes."""
    return choices(SCHEMES)


def load_scheme(name: str) -> Scheme:
    """Import a scheme. Raises `ValueError` that lists the schemes for a name that is none."""
    return cast(Scheme, load_choice(SCHEMES, name))
