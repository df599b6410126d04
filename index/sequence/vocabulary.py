"""The tokens that write identifiers, and those that a backbone gains: three markers and the tokens of codes.

Semantic and atomic identifiers have one new token for each (level, code). Text identifiers are *spelled* in
tokens that the backbone has already; all that is new is `<|end|>`, which ends an identifier of fewer than L
tokens.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property

import numpy as np
from numpy.typing import NDArray
from transformers import PreTrainedTokenizerFast

MARKERS = ("search", "recommendation", "item")
END = "end"


@dataclass(frozen=True)
class IdentifierVocabulary:
    """Which token id stands for which marker and which code. Added ids are contiguous from `first_added`:
    the markers in the order of `MARKERS`, then the codes of level 0, of level 1, ...; where identifiers are
    spelled, the markers and `<|end|>`, and a code *is* a token id of the whole vocabulary, on every level.

    first_added: the first id that the backbone's own tokenizer does not use.
    codebook_sizes: number of codes of each level, length L.
    spelled: whether identifiers are written in the backbone's own tokens. Those that end early are filled up
    with the code of `<|end|>`, of which the first is written.
    """

    first_added: int
    codebook_sizes: tuple[int, ...]
    spelled: bool = False

    @classmethod
    def spelling(cls, first_added: int, levels: int) -> IdentifierVocabulary:
        """That of text identifiers of up to `levels` tokens."""
        return cls(first_added, (first_added + len(MARKERS) + 1,) * levels, spelled=True)

    @property
    def levels(self) -> int:
        return len(self.codebook_sizes)

    @property
    def size(self) -> int:
        """One more than the last added id: the vocabulary size of the extended model."""
        return self.first_added + len(MARKERS) + (1 if self.spelled else sum(self.codebook_sizes))

    @cached_property
    def markers(self) -> dict[str, int]:
        return {name: self.first_added + k for k, name in enumerate(MARKERS)}

    @property
    def end(self) -> int | None:
        """The token, and code, that ends a spelled identifier early; None where all have L tokens."""
        return self.size - 1 if self.spelled else None

    @cached_property
    def first_code(self) -> NDArray[np.int64]:
        """int64 [L]: token id of code 0 of each level."""
        if self.spelled:
            return np.zeros(self.levels, np.int64)
        start = self.first_added + len(MARKERS)
        return start + np.cumsum((0, *self.codebook_sizes[:-1]), dtype=np.int64)

    def span(self, level: int) -> tuple[int, int]:
        """Token ids [first, last) of the codes of a level."""
        first = int(self.first_code[level])
        return first, first + self.codebook_sizes[level]

    def tokens(self, codes: NDArray[np.integer]) -> NDArray[np.int64]:
        """Token ids of identifiers: int [N, L] → int64 [N, L]."""
        if codes.ndim != 2 or codes.shape[1] != self.levels:
            raise ValueError(f"identifiers must have shape [N, {self.levels}], got {list(codes.shape)}")
        if len(codes) and (codes.min() < 0 or (codes.max(0) >= np.array(self.codebook_sizes)).any()):
            raise ValueError("an identifier holds a code outside its level's codebook")
        return codes.astype(np.int64) + self.first_code

    def lengths(self, codes: NDArray[np.integer]) -> NDArray[np.int64]:
        """How many tokens of each identifier are written: int [N, L] → int64 [N]."""
        if self.end is None:
            return np.full(len(codes), self.levels)
        lengths: NDArray[np.int64] = np.minimum((codes != self.end).sum(axis=1) + 1, self.levels)
        return lengths

    def token_names(self) -> list[str]:
        names = [f"<|{name}|>" for name in MARKERS]
        if self.spelled:
            return [*names, f"<|{END}|>"]
        for level, size in enumerate(self.codebook_sizes):
            names += [f"<|{level}:{code}|>" for code in range(size)]
        return names

    def add_to(self, tokenizer: PreTrainedTokenizerFast) -> None:
        """Register every added token as a special token, so that user text cannot produce it."""
        if len(tokenizer) != self.first_added:
            raise ValueError(f"the tokenizer has {len(tokenizer)} tokens, expected {self.first_added}")
        names = self.token_names()
        taken = set(names) & set(tokenizer.get_vocab())
        if taken:
            raise ValueError(f"the tokenizer already knows {sorted(taken)[:3]}; use a plain backbone")
        tokenizer.add_tokens(names, special_tokens=True)
        ids = tokenizer.convert_tokens_to_ids([names[0], names[-1]])
        if ids != [self.first_added, self.size - 1]:
            raise ValueError("the tokenizer did not number the added tokens contiguously")

    @classmethod
    def for_tokenizer(
        cls, tokenizer: PreTrainedTokenizerFast, codebook_sizes: Sequence[int], *, spelled: bool = False
    ) -> IdentifierVocabulary:
        """That of a tokenizer which holds none of the added tokens yet."""
        return cls(len(tokenizer), tuple(int(size) for size in codebook_sizes), spelled)
