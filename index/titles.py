"""Search for items by the words of their titles: every word of the query has to begin a term of the title.

All titles are in alphabetical order, and so are all of their terms (`index/words.py`). A prefix is a range of the
terms. The postings of this range, that is, the places of the titles with these terms, are one slice of an array.
"""

from __future__ import annotations

from array import array
from bisect import bisect_left
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from itertools import islice
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from index.files import read_array
from index.texts import Texts
from index.words import query_words, terms, words

_LAST = "\U0010ffff"  # sorts after every character of a word


@dataclass(frozen=True, eq=False)
class TitleIndex:
    """Titles and their terms in alphabetical order.

    rows: int32 [n], the catalogue rows of `titles`.
    titles: the words of each title, joined by spaces, ascending.
    terms: every term once, ascending.
    first, places: places[first[k] : first[k + 1]], int32, are the places in `titles` of the titles with terms[k].
    """

    rows: NDArray[np.int32]
    titles: Texts
    terms: Texts
    first: NDArray[np.int64]
    places: NDArray[np.int32]

    @classmethod
    def build(cls, titles: Sequence[str], removed: Sequence[int] = ()) -> TitleIndex:
        """Build the index. titles: by catalogue row. removed: rows that are left out."""
        gone = set(removed)
        return cls._of(_Read.of((row, title) for row, title in enumerate(titles) if row not in gone))

    def updated(self, titles: Sequence[str], changed: Iterable[int], removed: Sequence[int]) -> TitleIndex:
        """Return what `build` returns, and read only titles that are not in this index, or are others now.

        changed: rows with other titles.
        """
        gone = np.zeros(len(titles), bool)
        gone[list(removed)] = True
        stale = gone.copy()
        stale[list(changed)] = True
        kept = ~stale[self.rows]
        missing = ~gone
        missing[self.rows[kept]] = False
        rows = np.flatnonzero(missing).tolist()
        return self._of(self._read(stale).merged(_Read.of((row, titles[row]) for row in rows)))

    @classmethod
    def _of(cls, read: _Read) -> TitleIndex:
        order = sorted(zip(read.titles, read.rows.tolist(), strict=True))
        rows = np.array([row for _, row in order], np.int32)
        place_of = np.zeros(int(rows.max(initial=-1)) + 1, np.int32)
        place_of[rows] = np.arange(len(rows), dtype=np.int32)
        places, used = place_of[read.held[0]], np.bincount(read.held[1], minlength=len(read.terms)) > 0
        ascending = sorted((read.terms[k], k) for k in np.flatnonzero(used).tolist())
        rank = np.zeros(len(read.terms), np.int32)
        rank[[k for _, k in ascending]] = np.arange(len(ascending), dtype=np.int32)
        of_term = rank[read.held[1]]
        return cls(
            rows,
            Texts.of(title for title, _ in order),
            Texts.of(term for term, _ in ascending),
            np.append(0, np.cumsum(np.bincount(of_term, minlength=len(ascending)))).astype(np.int64),
            places[np.lexsort((places, of_term))],
        )

    def _read(self, left_out: NDArray[np.bool_]) -> _Read:
        """Return what the index was made of, without some rows, bool [rows]."""
        kept = ~left_out[self.rows]
        held = np.stack([self.rows[self.places], np.repeat(np.arange(len(self.terms)), np.diff(self.first))])
        return _Read(
            self.rows[kept].astype(np.int64),
            [title for title, stays in zip(self.titles, kept.tolist(), strict=True) if stays],
            list(self.terms),
            held[:, ~left_out[held[0]]],
        )

    def save(self, folder: Path) -> None:
        """Write all arrays into a new folder."""
        folder.mkdir()
        np.save(folder / "rows.npy", self.rows)
        self.titles.save(folder, "title")
        self.terms.save(folder, "term")
        np.save(folder / "first.npy", self.first)
        np.save(folder / "places.npy", self.places)

    @classmethod
    def open(cls, folder: Path, items: int) -> TitleIndex:
        """Read what `save` wrote. items: rows of the catalogue. Raises `ValueError` that names the wrong file."""
        rows, places = read_array(folder / "rows.npy", np.int32), read_array(folder / "places.npy", np.int32)
        first = read_array(folder / "first.npy", np.int64)
        titles = Texts.open(folder, "title", len(rows))
        terms = Texts.open(folder, "term", len(first) - 1)
        for name, numbers, below in (("rows", rows, items), ("places", places, len(rows))):
            if len(numbers) and (numbers.min() < 0 or numbers.max() >= below):
                raise ValueError(f"{folder / name}.npy is damaged: its numbers must be less than {below:,}")
        if not len(first) or first[0] != 0 or first[-1] != len(places) or (np.diff(first) < 1).any():
            raise ValueError(f"{folder / 'first.npy'} is damaged: it must cut the places into ranges")
        if len(np.unique(rows)) < len(rows):
            raise ValueError(f"{folder / 'rows.npy'} is damaged: it holds a row twice")
        return cls(rows, titles, terms, first, places)

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


@dataclass(frozen=True, eq=False)
class _Read:
    """Titles of some rows, read.

    rows: int64 [n]. titles: the words of each, joined by spaces. terms: each once.
    held: int64 [2, m]: the title of row held[0] has the term held[1].
    """

    rows: NDArray[np.int64]
    titles: list[str]
    terms: list[str]
    held: NDArray[np.int64]

    @classmethod
    def of(cls, titles: Iterable[tuple[int, str]]) -> _Read:
        number: dict[str, int] = {}
        rows, folded, owner, term = array("q"), [], array("q"), array("q")
        for row, title in titles:
            named = [number.setdefault(each, len(number)) for each in dict.fromkeys(terms(title))]
            rows.append(row)
            folded.append(" ".join(words(title)))
            owner.extend([row] * len(named))
            term.extend(named)
        return cls(np.array(rows), folded, list(number), np.stack([np.array(owner), np.array(term)]))

    def merged(self, other: _Read) -> _Read:
        number = {term: k for k, term in enumerate(self.terms)}
        place = np.array([number.setdefault(term, len(number)) for term in other.terms], np.int64)
        held = np.stack([other.held[0], place[other.held[1]]])
        return _Read(
            np.concatenate([self.rows, other.rows]),
            self.titles + other.titles,
            list(number),
            np.concatenate([self.held, held], axis=1),
        )


def _range(ascending: Sequence[str], prefix: str) -> tuple[int, int]:
    """Return the range [begin, end) of the texts with this prefix."""
    return bisect_left(ascending, prefix), bisect_left(ascending, prefix + _LAST)


def _within_first(matching: NDArray[np.bool_], begin: int, end: int) -> Iterator[int]:
    """Yield the matching places, those in [begin, end) first."""
    places = np.flatnonzero(matching)
    within = (places >= begin) & (places < end)
    yield from places[within]
    yield from places[~within]
