"""What an identifier scheme is given, and what it makes: items → codes.

A scheme is a module of `index.identifiers.schemes` with two functions:

    levels(settings) -> int                       L, codes of an identifier at most
    identifiers(items, settings) -> Identifiers   identifiers of a catalogue
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Protocol

import numpy as np
from numpy.typing import NDArray
from transformers import PreTrainedTokenizerFast

from index.identifiers.codebooks import Codebooks

SPELLED = "text"  # the scheme whose identifiers are


class IdentifierError(ValueError):
    """Identifiers cannot be made from these items; the message says why and what to mend."""


@dataclass(frozen=True, eq=False)
class Identifiers:
    """Identifiers of a catalogue.

    scheme: its name.
    codes: int32 [N, L], one row an item, no two alike.
    codebook_sizes: number of codes of each level, L of them.
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


@dataclass(frozen=True, eq=False)
class ItemsToName:
    """What a scheme may read of the items, in the order of the catalogue.

    titles: N of them.
    vectors: float32 [N, d], finite.
    tokenizer: of the backbone, without added tokens.
    """

    titles: Sequence[str]
    vectors: NDArray[np.float32]
    tokenizer: PreTrainedTokenizerFast


class SchemeSettings(Protocol):
    """Settings of all schemes; each reads its own."""

    @property
    def codebooks(self) -> tuple[int, ...]: ...

    @property
    def quantiser(self) -> str: ...

    @property
    def code_capacity(self) -> float: ...

    @property
    def spelling(self) -> int: ...

    @property
    def seed(self) -> int: ...
