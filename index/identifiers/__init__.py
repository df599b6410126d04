"""Identifier schemes, one file each: items → codes."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from index.identifiers.codebooks import Codebooks

SPELLED = "text"  # the scheme that is


class IdentifierError(ValueError):
    """Identifiers cannot be made from these items; the message says why and what to mend."""


@dataclass(frozen=True, eq=False)
class Identifiers:
    """scheme: name; codes: int32 [N, L], one row an item; codebook_sizes: L sizes.

    codebooks: what names items that come later; None for a scheme that cannot.
    """

    scheme: str
    codes: NDArray[np.int32]
    codebook_sizes: tuple[int, ...]
    codebooks: Codebooks | None = None

    @property
    def spelled(self) -> bool:
        """Whether they are written in the backbone's own tokens."""
        return self.scheme == SPELLED
