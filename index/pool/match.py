"""The match of a query with all items: scores, what the query says about single items, and the best of them."""

from __future__ import annotations

from dataclasses import dataclass
from functools import cached_property
from itertools import chain, zip_longest

import numpy as np
from numpy.typing import NDArray

from index.largest import Numbers, largest
from index.pool.title_words import TitleWords
from index.trie.allowed import Allowed
from index.trie.trie import places_in

GROUP = 64  # rows
MORE = 8  # times as many rows are looked at if a filter leaves too few
FEW = 50_000  # chosen items that are looked at one by one
Rows = NDArray[np.int64]


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


def top(
    match: LexicalMatch, allowed: Allowed, limit: int, popularity: Numbers, among: Rows | None = None
) -> Rows:
    """Return at most `limit` allowed rows that match, each once: int64.

    First come items of which the query is the whole title, id or search attribute, the most popular of them, at most
    half of `limit` (at least one). Then alternately the best by BM25 and the most popular of those with all words. Of
    equal items the more popular comes first, then the lower row. The items are chosen among the allowed ones, so a
    narrow filter leaves no fewer than match.

    popularity: [items], higher is more popular.
    among: the only rows that count, ascending; None: all.
    """
    named = allowed.of_rows(np.union1d(match.title_rows, match.attribute_rows))
    if among is not None:
        named = np.intersect1d(named, among)
    elif allowed.chosen is not None and len(allowed.chosen) <= FEW:
        among = np.sort(allowed.trie.slot_items[allowed.chosen.members]).astype(np.int64)
    exact = named[largest([popularity[named], match.scores[named]], max(1, limit // 2))]
    by_words = _leaders(match.scores, 0, popularity, allowed, among, limit)
    with_all_words = np.where(match.all_words, popularity, -np.inf)
    by_popularity = _leaders(with_all_words, -np.inf, match.scores, allowed, among, limit)
    pairs = zip_longest(by_words.tolist(), by_popularity.tolist())
    order = dict.fromkeys(row for row in chain(exact.tolist(), chain.from_iterable(pairs)) if row is not None)
    return np.array(list(order)[:limit], np.int64)


def _leaders(
    key: Numbers, least: float, ties: Numbers, allowed: Allowed, among: Rows | None, limit: int
) -> Rows:
    """Return the allowed rows with the largest keys, at most `limit`; ties by `ties`, then by row; in that order.

    key, ties: float [items]. least: the key of rows that do not count. among: see `top`.
    """
    if among is not None:
        rows = allowed.of_rows(among[key[among] > least])
    else:
        wanted, rows = limit, allowed.of_rows(_above(key, least, limit))
        while len(rows) < limit and wanted < len(key):
            wanted *= MORE
            rows = allowed.of_rows(_above(key, least, wanted))
    return rows[largest([key[rows], ties[rows]], limit)]


def _above(key: Numbers, least: float, wanted: int) -> Rows:
    """Return rows, ascending, among them the `wanted` with the largest keys and all that equal the last of these.

    The `wanted` best groups of rows hold as many rows that are no worse than the worst leader of these groups. To look
    for the leaders of all groups is much faster than to sort all rows.
    """
    groups = len(key) // GROUP
    if wanted < groups:
        leaders = key[: groups * GROUP].reshape(GROUP, groups).max(0)
        bound = np.partition(leaders, groups - wanted)[groups - wanted]
        if bound > least:
            return np.flatnonzero(key >= bound)
    return np.flatnonzero(key > least)
