"""The tokens of identifiers, and the tokens that are added to a backbone: three markers and the tokens of codes.

Semantic and atomic identifiers have one new token for each (level, code). Text identifiers are *spelled* in tokens that
the backbone already has. Their only new token is `<|end|>`, which ends an identifier of fewer than L tokens.
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
    """The token ids of markers and codes.

    Added ids are contiguous from `first_added`: the markers in the order of `MARKERS`, then the codes of level 0, of
    level 1, and so on. If identifiers are spelled, the added ids are the markers and `<|end|>`, and a code *is* a token
    id of the whole vocabulary, on every level.

    first_added: the first id that the backbone's own tokenizer does not use.
    codebook_sizes: number of codes of each level, length L.
    spelled: whether identifiers are written in the backbone's own tokens. A shorter identifier is padded with the code
    of `<|end|>`; only the first of these is written.
    """

    first_added: int
    codebook_sizes: tuple[int, ...]
    spelled: bool = False

    @classmethod
    def spelling(cls, first_added: int, levels: int) -> IdentifierVocabulary:
        """Return the vocabulary of text identifiers of up to `levels` tokens."""
        return cls(first_added, (first_added + len(MARKERS) + 1,) * levels, spelled=True)

    @property
    def levels(self) -> int:
        """L, the number of codes of an identifier."""
        return len(self.codebook_sizes)

    @property
    def one_code(self) -> bool:
        """Whether one code names one item, so that an item that was added later has the code of another one."""
        return self.levels == 1 and not self.spelled

    @property
    def size(self) -> int:
        """Vocabulary size of the extended model: the last added id plus one."""
        return self.first_added + len(MARKERS) + (1 if self.spelled else sum(self.codebook_sizes))

    @cached_property
    def markers(self) -> dict[str, int]:
        """Token id of each marker, by name."""
        return {name: self.first_added + k for k, name in enumerate(MARKERS)}

    @property
    def end(self) -> int | None:
        """Token id, and code, of `<|end|>`; None if identifiers are not spelled."""
        return self.size - 1 if self.spelled else None

    @cached_property
    def first_code(self) -> NDArray[np.int64]:
        """Token id of code 0 of each level: int64 [L]."""
        if self.spelled:
            return np.zeros(self.levels, np.int64)
        start = self.first_added + len(MARKERS)
        return start + np.cumsum((0, *self.codebook_sizes[:-1]), dtype=np.int64)

    def span(self, level: int) -> tuple[int, int]:
        """Return the range [first, last) of the token ids of a level's codes."""
        first = int(self.first_code[level])
        return first, first + self.codebook_sizes[level]

    def tokens(self, codes: NDArray[np.integer]) -> NDArray[np.int64]:
        """Return the token ids of identifiers: int [N, L] → int64 [N, L].

        Raises `ValueError` for a wrong shape, or a code outside its codebook.
        """
        if codes.ndim != 2 or codes.shape[1] != self.levels:
            raise ValueError(f"identifiers must have shape [N, {self.levels}], got {list(codes.shape)}")
        if len(codes) and (codes.min() < 0 or (codes.max(0) >= np.array(self.codebook_sizes)).any()):
            raise ValueError("an identifier holds a code outside its level's codebook")
        return codes.astype(np.int64) + self.first_code

    def lengths(self, codes: NDArray[np.integer]) -> NDArray[np.int64]:
        """Return the number of written tokens of each identifier: int [N, L] → int64 [N]."""
        if self.end is None:
            return np.full(len(codes), self.levels)
        lengths: NDArray[np.int64] = np.minimum((codes != self.end).sum(axis=1) + 1, self.levels)
        return lengths

    def token_names(self) -> list[str]:
        """Return the names of all added tokens, in the order of their ids."""
        names = [f"<|{name}|>" for name in MARKERS]
        if self.spelled:
            return [*names, f"<|{END}|>"]
        for level, size in enumerate(self.codebook_sizes):
            names += [f"<|{level}:{code}|>" for code in range(size)]
        return names

    def add_to(self, tokenizer: PreTrainedTokenizerFast) -> None:
        """Add every token to a tokenizer as a special token, so that user text cannot produce it.

        Raises `ValueError` if the tokenizer already has one of them, or numbers them differently.
        """
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
        """Return the vocabulary for a tokenizer without any of the added tokens."""
        return cls(len(tokenizer), tuple(int(size) for size in codebook_sizes), spelled)
