"""The tokens that a backbone gains: three markers and one token per (level, code)."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property

import numpy as np
from numpy.typing import NDArray
from transformers import PreTrainedTokenizerFast

MARKERS = ("search", "recommendation", "item")


@dataclass(frozen=True)
class IdentifierVocabulary:
    """Which token id stands for which marker and which code. Ids are contiguous from `first_added`:
    the markers in the order of `MARKERS`, then the codes of level 0, of level 1, ...

    first_added: the first id that the backbone's own tokenizer does not use.
    codebook_sizes: number of codes of each level, length L.
    """

    first_added: int
    codebook_sizes: tuple[int, ...]

    @property
    def levels(self) -> int:
        return len(self.codebook_sizes)

    @property
    def size(self) -> int:
        """One more than the last added id: the vocabulary size of the extended model."""
        return self.first_added + len(MARKERS) + sum(self.codebook_sizes)

    @cached_property
    def markers(self) -> dict[str, int]:
        return {name: self.first_added + k for k, name in enumerate(MARKERS)}

    @cached_property
    def first_code(self) -> NDArray[np.int64]:
        """int64 [L + 1]: token id of code 0 of each level; the last entry is `size`."""
        start = self.first_added + len(MARKERS)
        return start + np.concatenate([[0], np.cumsum(self.codebook_sizes)]).astype(np.int64)

    def tokens(self, codes: NDArray[np.integer]) -> NDArray[np.int64]:
        """Token ids of identifiers: int [N, L] → int64 [N, L]."""
        if codes.ndim != 2 or codes.shape[1] != self.levels:
            raise ValueError(f"identifiers must have shape [N, {self.levels}], got {list(codes.shape)}")
        if len(codes) and (codes.min() < 0 or (codes.max(0) >= np.array(self.codebook_sizes)).any()):
            raise ValueError("an identifier holds a code outside its level's codebook")
        return codes.astype(np.int64) + self.first_code[:-1]

    def level(self, ids: NDArray[np.integer]) -> NDArray[np.int8]:
        """Identifier level that each token writes, -1 for every other token; same shape as `ids`."""
        level = np.searchsorted(self.first_code, ids, side="right") - 1
        return np.where(ids < self.size, level, -1).astype(np.int8)

    def token_names(self) -> list[str]:
        names = [f"<|{name}|>" for name in MARKERS]
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
        cls, tokenizer: PreTrainedTokenizerFast, codebook_sizes: Sequence[int]
    ) -> IdentifierVocabulary:
        return cls(len(tokenizer), tuple(int(size) for size in codebook_sizes))
