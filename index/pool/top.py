"""The best items of a lexical match, within the items that a request may return."""

from __future__ import annotations

from itertools import chain, zip_longest

import numpy as np
from numpy.typing import NDArray

from index.pool.match import LexicalMatch
from index.trie.allowed import Allowed

GROUP = 64  # rows
MORE = 8  # times as many rows are looked at if a filter leaves too few
FEW = 50_000  # chosen items that are looked at one by one
Rows = NDArray[np.int64]
Numbers = NDArray[np.floating] | NDArray[np.integer]


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
    exact = named[_best([popularity[named], match.scores[named]], max(1, limit // 2))]
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
    return rows[_best([key[rows], ties[rows]], limit)]


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


def _best(keys: list[Numbers], limit: int) -> NDArray[np.int64]:
    """Return the places of the `limit` largest, by the first key, ties by the next, then by place; in that order."""
    places = _largest(keys, np.arange(len(keys[0])), limit)
    return places[np.lexsort([places, *(-key[places] for key in reversed(keys))])]


def _largest(keys: list[Numbers], places: NDArray[np.int64], limit: int) -> NDArray[np.int64]:
    """Return the `limit` largest of some places, ascending ones, in any order."""
    if len(places) <= limit or not keys:
        return places[:limit]
    key = keys[0][places]
    least = np.partition(key, len(key) - limit)[len(key) - limit]
    above, equal = places[key > least], places[key == least]
    return np.concatenate([above, _largest(keys[1:], equal, limit - len(above))])
