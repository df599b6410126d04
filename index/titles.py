"""Search for items by the words of their titles: every word of the query has to begin a term of the title.

All titles are in alphabetical order, and so are all of their terms (`index/words.py`). A prefix is a range of the
terms. The postings of this range, that is, the places of the titles with these terms, are one slice of an array.
"""

from __future__ import annotations

from bisect import bisect_left
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from itertools import chain, islice

import numpy as np
from numpy.typing import NDArray

from index.words import query_words, terms, words

_LAST = "\U0010ffff"  # sorts after every character of a word


@dataclass(frozen=True, eq=False)
class TitleIndex:
    """Titles and their terms in alphabetical order.

    rows: int64 [n], the catalogue rows of `titles`.
    titles: the words of each title, joined by spaces, ascending.
    terms: every term once, ascending.
    first, places: places[first[k] : first[k + 1]], int32, are the places in `titles` of the titles with terms[k].
    """

    rows: NDArray[np.int64]
    titles: list[str]
    terms: list[str]
    first: NDArray[np.int64]
    places: NDArray[np.int32]

    @classmethod
    def build(cls, titles: Sequence[str], removed: Sequence[int] = ()) -> TitleIndex:
        """Build the index. titles: by catalogue row. removed: rows that are left out."""
        gone = set(removed)
        folded = {row: " ".join(words(title)) for row, title in enumerate(titles) if row not in gone}
        rows = sorted(folded, key=lambda row: (folded[row], row))
        places_of: dict[str, list[int]] = {}
        for place, row in enumerate(rows):
            for term in dict.fromkeys(terms(titles[row])):
                places_of.setdefault(term, []).append(place)
        ascending = sorted(places_of)
        return cls(
            np.array(rows, np.int64),
            [folded[row] for row in rows],
            ascending,
            np.cumsum([0, *(len(places_of[term]) for term in ascending)]),
            np.fromiter(chain.from_iterable(places_of[term] for term in ascending), np.int32),
        )

    def find(self, text: str, limit: int) -> list[int]:
        """Return at most `limit` catalogue rows of titles that have every word of `text`, or terms that begin with it.

        Titles that begin with the text come first, then the others, both in alphabetical order.
        """
        asked = query_words(text)
        if not asked:
            return []
        matching = np.ones(len(self.titles), bool)
        for word in asked:
            spelled = [self._with_prefixes(spelling) for spelling in word.spellings]
            matching &= np.logical_or.reduce(spelled)
        begin, end = _range(self.titles, " ".join(words(text)))
        return [int(self.rows[place]) for place in islice(_within_first(matching, begin, end), limit)]

    def _with_prefixes(self, prefixes: Sequence[str]) -> NDArray[np.bool_]:
        """Return which titles have, for each prefix, a term that begins with it: bool [n]."""
        matching = np.ones(len(self.titles), bool)
        for prefix in prefixes:
            begin, end = _range(self.terms, prefix)
            of_prefix = np.zeros_like(matching)
            of_prefix[self.places[self.first[begin] : self.first[end]]] = True
            matching &= of_prefix
        return matching


def _range(ascending: Sequence[str], prefix: str) -> tuple[int, int]:
    """Return the range [begin, end) of the texts with this prefix."""
    return bisect_left(ascending, prefix), bisect_left(ascending, prefix + _LAST)


def _within_first(matching: NDArray[np.bool_], begin: int, end: int) -> Iterator[int]:
    """Yield the matching places, those in [begin, end) first."""
    places = np.flatnonzero(matching)
    within = (places >= begin) & (places < end)
    yield from places[within]
    yield from places[~within]
