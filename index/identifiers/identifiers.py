"""The input and the output of an identifier scheme: items → codes.

A scheme is a module of `index.identifiers.schemes` with two functions:

    levels(settings) -> int                       L, the most codes of an identifier
    identifiers(items, settings) -> Identifiers   the identifiers of a catalogue
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Protocol

import numpy as np
from numpy.typing import NDArray

from index.identifiers.codebooks import Codebooks, Layer

if TYPE_CHECKING:  # settings and reports read the schemes' names without the library
    from transformers import PreTrainedTokenizerFast

SPELLED = "text"  # the scheme with spelled identifiers


class IdentifierError(ValueError):
    """Identifiers cannot be made from these items. The message names the reason and the remedy."""


@dataclass(frozen=True, eq=False)
class Identifiers:
    """Identifiers of a catalogue.

    scheme: name of the scheme.
    codes: int32 [N, L], one row for each item, all different.
    codebook_sizes: number of codes of each level, length L.
    codebooks: codebooks that name later items; None for a scheme without codebooks.
    search_codes, search_codebooks: those that searches write, if they have identifiers of their own, of the same
    levels; None if `codes` serve both tasks.
    """

    scheme: str
    codes: NDArray[np.int32]
    codebook_sizes: tuple[int, ...]
    codebooks: Codebooks | None = None
    search_codes: NDArray[np.int32] | None = None
    search_codebooks: Codebooks | None = None

    @property
    def every_code(self) -> NDArray[np.int32]:
        """All identifiers of all items: int32 [N, L], or [2 N, L], items in their order and once more in it."""
        return self.codes if self.search_codes is None else np.concatenate([self.codes, self.search_codes])

    def behind(self, layer: Layer) -> Identifiers:
        """Return them with codebooks for vectors x that give the codes of x · weight + bias; see `Codebooks.behind`."""
        known, searched = self.codebooks, self.search_codebooks
        return replace(
            self,
            codebooks=None if known is None else known.behind(layer),
            search_codebooks=None if searched is None else searched.behind(layer),
        )

    @property
    def spelled(self) -> bool:
        """Whether they are written in the backbone's own tokens."""
        return self.scheme == SPELLED


@dataclass(frozen=True, eq=False)
class ItemsToName:
    """The input of a scheme: the items, in the order of the catalogue.

    titles: one for each of N items.
    vectors: float32 [N, d], finite.
    tokenizer: the backbone's tokenizer, without added tokens.
    behaviour: vectors that a recommender has learned for them, float32 [N, k], rows of NaN for items that nobody chose;
    None if the settings have no use for them.
    """

    titles: Sequence[str]
    vectors: NDArray[np.float32]
    tokenizer: PreTrainedTokenizerFast
    behaviour: NDArray[np.float32] | None = None


class SchemeSettings(Protocol):
    """Settings of all schemes. Each scheme reads its own."""

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
