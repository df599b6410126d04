"""Search for items by the words of their titles: by word prefixes, without case and accents.

All titles are in alphabetical order, and so are all of their words. A prefix is a range of the words. The postings of
this range, that is, the places of the titles with these words, are one slice of an array.
"""

from __future__ import annotations

import re
import unicodedata
from bisect import bisect_left
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from itertools import chain, islice

import numpy as np
from numpy.typing import NDArray

_WORD = re.compile(r"\w+")
_APOSTROPHES = str.maketrans("", "", "'’`")  # Schindler's is found by schindlers
_LAST = "\U0010ffff"  # sorts after every character of a word


def words_of(text: str) -> list[str]:
    """Return the words of a text in lower case, without accents: `Amélie (2001)` gives `amelie`, `2001`."""
    plain = text.translate(_APOSTROPHES)
    if not plain.isascii():
        plain = "".join(c for c in unicodedata.normalize("NFKD", plain) if not unicodedata.combining(c))
    return _WORD.findall(plain.casefold())


@dataclass(frozen=True, eq=False)
class TitleIndex:
    """Titles and their words in alphabetical order.

    rows: int64 [n], the catalogue rows of `titles`.
    titles: the words of each title, joined by spaces, ascending.
    words: every word once, ascending.
    first, places: places[first[k] : first[k + 1]], int32, are the places in `titles` of the titles with words[k].
    """

    rows: NDArray[np.int64]
    titles: list[str]
    words: list[str]
    first: NDArray[np.int64]
    places: NDArray[np.int32]

    @classmethod
    def build(cls, titles: Sequence[str], removed: Sequence[int] = ()) -> TitleIndex:
        """Build the index. titles: by catalogue row. removed: rows that are left out."""
        gone = set(removed)
        found = {row: words_of(title) for row, title in enumerate(titles) if row not in gone}
        folded = {row: " ".join(words) for row, words in found.items()}
        rows = sorted(folded, key=lambda row: (folded[row], row))
        places_of: dict[str, list[int]] = {}
        for place, row in enumerate(rows):
            for word in dict.fromkeys(found[row]):
                places_of.setdefault(word, []).append(place)
        words = sorted(places_of)
        return cls(
            np.array(rows, np.int64),
            [folded[row] for row in rows],
            words,
            np.cumsum([0, *(len(places_of[word]) for word in words)]),
            np.fromiter(chain.from_iterable(places_of[word] for word in words), np.int32),
        )

    def find(self, text: str, limit: int) -> list[int]:
        """Return at most `limit` catalogue rows of titles in which every word of `text` begins a word.

        Titles that begin with the text come first, then the others, both in alphabetical order.
        """
        wanted = words_of(text)
        if not wanted:
            return []
        matching = np.ones(len(self.titles), bool)
        for word in set(wanted):
            begin, end = _range(self.words, word)
            of_word = np.zeros_like(matching)
            of_word[self.places[self.first[begin] : self.first[end]]] = True
            matching &= of_word
        begin, end = _range(self.titles, " ".join(wanted))
        return [int(self.rows[place]) for place in islice(_within_first(matching, begin, end), limit)]


def _range(ascending: Sequence[str], prefix: str) -> tuple[int, int]:
    """Return the range [begin, end) of the texts with this prefix."""
    return bisect_left(ascending, prefix), bisect_left(ascending, prefix + _LAST)


def _within_first(matching: NDArray[np.bool_], begin: int, end: int) -> Iterator[int]:
    """Yield the matching places, those in [begin, end) first."""
    places = np.flatnonzero(matching)
    within = (places >= begin) & (places < end)
    yield from places[within]
    yield from places[~within]
