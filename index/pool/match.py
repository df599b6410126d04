"""The match of a query with all items: scores, and what the query says about single items."""

from __future__ import annotations

from dataclasses import dataclass
from functools import cached_property

import numpy as np
from numpy.typing import NDArray

from index.pool.arrays import places_in
from index.pool.title_words import TitleWords


@dataclass(frozen=True, slots=True)
class MatchedWord:
    """A word of a query, looked up.

    text: the word.
    spellings: places of terms; an item has the word if it has all terms of one spelling. Empty if nothing is known.
    factors: factor of each spelling's score.
    replaced_by: the terms that stand for the word if no item has it; empty for a known word.
    """

    text: str
    spellings: tuple[tuple[int, ...], ...]
    factors: tuple[float, ...]
    replaced_by: tuple[str, ...] = ()

    @property
    def is_known(self) -> bool:
        """Whether an item has the word itself."""
        return bool(self.spellings) and not self.replaced_by


@dataclass(frozen=True, eq=False)
class LexicalMatch:
    """A query, looked up in all items.

    words: the distinct words of the query.
    scores: float32 [items], BM25; 0 where no word matches. A repeated word counts once.
    found: uint8 [items], number of the words that each item has.
    title_rows: int32, ascending, the rows whose title is the query.
    attribute_rows: int32, ascending, the rows whose id or a search attribute is the query.
    category_rows: int32, ascending, the rows of which a category is the query.
    titles: terms of the titles.
    """

    words: tuple[MatchedWord, ...]
    scores: NDArray[np.float32]
    found: NDArray[np.uint8]
    title_rows: NDArray[np.int32]
    attribute_rows: NDArray[np.int32]
    category_rows: NDArray[np.int32]
    titles: TitleWords

    @cached_property
    def all_words(self) -> NDArray[np.bool_]:
        """Whether each item has all words, or terms that replace them: bool [items]; no item if there is no word."""
        every: NDArray[np.bool_] = self.found == max(1, len(self.words))
        return every

    @property
    def known_share(self) -> float:
        """The share of the words that some item has; 0 for a blank query."""
        return sum(word.is_known for word in self.words) / len(self.words) if self.words else 0.0

    @property
    def replaced(self) -> dict[str, tuple[str, ...]]:
        """The words that no item has, and the terms that replace them, the nearest first."""
        return {word.text: word.replaced_by for word in self.words if word.replaced_by}

    def exact_title(self, rows: NDArray[np.integer]) -> NDArray[np.bool_]:
        """Whether the query is the whole title of each item, apart from spaces and punctuation: bool [rows]."""
        return places_in(self.title_rows, rows)[1]

    def exact_attribute(self, rows: NDArray[np.integer]) -> NDArray[np.bool_]:
        """Whether the query is the id or a whole search attribute of each item: bool [rows]."""
        return places_in(self.attribute_rows, rows)[1]

    def exact_category(self, rows: NDArray[np.integer]) -> NDArray[np.bool_]:
        """Whether the words of the query are those of a whole category of each item: bool [rows]."""
        return places_in(self.category_rows, rows)[1]

    def title_share(self, rows: NDArray[np.integer]) -> NDArray[np.float32]:
        """Return the share of each title's words that the query names: float32 [rows], 0 unless the title has them all.

        It is 1 for `exact_title`.
        """
        share = self.titles.shares(rows, [word.spellings for word in self.words])
        return np.where(self.exact_title(rows), np.float32(1), share)
