"""The best items of a lexical match, within the items that a request may return."""

from __future__ import annotations

from itertools import chain, zip_longest

import numpy as np
from numpy.typing import NDArray

from index.pool.match import LexicalMatch
from index.trie.allowed import Allowed

Rows = NDArray[np.int64]


def top(match: LexicalMatch, allowed: Allowed, limit: int, popularity: NDArray[np.floating]) -> Rows:
    """Return at most `limit` allowed rows that match, each once: int64.

    First come items of which the query is the whole title, id or search attribute, the most popular of them, at most
    half of `limit` (at least one). Then alternately the best by BM25 and the most popular of those with all words. Of
    equal items the more popular comes first, then the lower row. The items are chosen among the allowed ones, so a
    narrow filter leaves no fewer than match.

    popularity: float [items], higher is more popular.
    """
    named = _allowed(np.union1d(match.title_rows, match.attribute_rows).astype(np.int64), allowed)
    rows = _matching(match.found, allowed)
    score, popular = match.scores[rows], popularity[rows]
    by_words = rows[_best([score, popular], limit)]
    every = np.flatnonzero(match.all_words[rows])
    by_popularity = rows[every[_best([popular[every], score[every]], limit)]]
    exact = named[_best([popularity[named], match.scores[named]], max(1, limit // 2))]
    pairs = zip_longest(by_words.tolist(), by_popularity.tolist())
    order = dict.fromkeys(row for row in chain(exact.tolist(), chain.from_iterable(pairs)) if row is not None)
    return np.array(list(order)[:limit], np.int64)


def _matching(found: NDArray[np.uint8], allowed: Allowed) -> Rows:
    """Return the allowed rows that have a word of the query, ascending."""
    if allowed.chosen is not None and len(allowed.chosen) < np.count_nonzero(found):
        chosen = np.sort(allowed.trie.slot_items[allowed.chosen.members]).astype(np.int64)
        return _allowed(chosen[found[chosen] > 0], allowed)
    return _allowed(np.flatnonzero(found), allowed)


def _allowed(rows: Rows, allowed: Allowed) -> Rows:
    """Return those of the rows, ascending, that are allowed."""
    trie = allowed.trie
    if allowed.chosen is not None:
        rows = rows[allowed.chosen.bits.holds(trie.slot_of_item[rows].astype(np.int64))]
    if len(allowed.excluded):
        rows = rows[~np.isin(rows, trie.slot_items[allowed.excluded])]
    return rows


def _best(keys: list[NDArray[np.floating]], limit: int) -> NDArray[np.int64]:
    """Return the places of the `limit` largest, by the first key, ties by the next, then by place; in that order."""
    places = _largest(keys, np.arange(len(keys[0])), limit)
    return places[np.lexsort([places, *(-key[places] for key in reversed(keys))])]


def _largest(keys: list[NDArray[np.floating]], places: NDArray[np.int64], limit: int) -> NDArray[np.int64]:
    """Return the `limit` largest of some places, ascending ones, in any order."""
    if len(places) <= limit or not keys:
        return places[:limit]
    key = keys[0][places]
    least = np.partition(key, len(key) - limit)[len(key) - limit]
    above, equal = places[key > least], places[key == least]
    return np.concatenate([above, _largest(keys[1:], equal, limit - len(above))])
