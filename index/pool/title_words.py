"""The terms of each title, to tell how much of a title a query names."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from index.arrays import read_offsets, read_places, read_vector
from index.trie.trie import places_in, ranges

Spellings = Sequence[Sequence[int]]  # of a query word: terms, all of one spelling have to be there


@dataclass(frozen=True, eq=False)
class TitleWords:
    """Terms of the titles.

    first: int64 [items + 1].
    terms: int32; terms[first[row] : first[row + 1]], each once, are the terms of a title, its words before the others.
    words: int32 [items], number of the words of each title.
    """

    first: NDArray[np.int64]
    terms: NDArray[np.int32]
    words: NDArray[np.int32]

    @property
    def nbytes(self) -> int:
        """Bytes of the arrays."""
        return self.first.nbytes + self.terms.nbytes + self.words.nbytes

    def shares(self, rows: NDArray[np.integer], asked: Sequence[Spellings]) -> NDArray[np.float32]:
        """Return the share of each title's words that a query names, float32 [rows]; 0 unless it has every query word.

        A title that is named by a spelling of its own (`wd40` for WD-40) has one word named.

        asked: of each word of the query.
        """
        rows = np.asarray(rows, np.int64)
        begin = self.first[rows]
        owner, place = ranges(begin, self.first[rows + 1])
        term = self.terms[place]
        is_word = place - begin[owner] < self.words[rows][owner]
        every = np.full(len(rows), bool(asked))
        named = np.zeros(len(term), bool)
        for spellings in asked:
            any_spelling = np.zeros(len(rows), bool)
            for spelling in spellings:
                whole = np.ones(len(rows), bool)
                for one in spelling:
                    has = term == one
                    whole &= np.bincount(owner[has], minlength=len(rows)) > 0
                    named |= has
                any_spelling |= whole
            every &= any_spelling
        count = np.bincount(owner[named & is_word], minlength=len(rows))
        share = np.maximum(count, 1) / np.maximum(self.words[rows], 1)
        return np.where(every, share, 0).astype(np.float32)

    def likeness(
        self, rows: NDArray[np.integer], others: Sequence[int], weight: NDArray[np.float32]
    ) -> NDArray[np.float32]:
        """Return the largest cosine of each title with the titles of some other rows, float32 [rows], 0 … 1.

            cos(i, j) = Σ_{t in i and j} w_t² / √(Σ_{t in i} w_t² · Σ_{t in j} w_t²)

        A row is not compared with itself.

        others: rows. weight: w, float32 [terms].
        """
        rows = np.asarray(rows, np.int64)
        owner, place = ranges(self.first[rows], self.first[rows + 1])
        term = self.terms[place]
        square = weight[term].astype(np.float64) ** 2
        norm = np.sqrt(np.bincount(owner, square, minlength=len(rows)))
        histories = np.asarray(others, np.int64)
        other, their_place = ranges(self.first[histories], self.first[histories + 1])
        theirs = self.terms[their_place]
        known = np.unique(theirs)
        if not len(known) or not len(rows):
            return np.zeros(len(rows), np.float32)
        # small tables in place of a loop over the others: squares of the titles by term, and who else has the term
        at, shared = places_in(known, term)
        squares = np.zeros((len(rows), len(known)))
        squares[owner[shared], at[shared]] = square[shared]
        has = np.zeros((len(known), len(histories)))
        has[np.searchsorted(known, theirs), other] = 1
        lengths = np.sqrt((weight[known].astype(np.float64) ** 2) @ has)
        length = np.outer(norm, lengths)
        cosine = np.divide(squares @ has, length, out=np.zeros(length.shape), where=length > 0)
        cosine[rows[:, None] == histories] = 0
        best: NDArray[np.float32] = cosine.max(axis=1).clip(max=1).astype(np.float32)
        return best

    def save(self, folder: Path) -> None:
        """Write `title_first.npy`, `title_terms.npy` and `title_words.npy`."""
        np.save(folder / "title_first.npy", self.first)
        np.save(folder / "title_terms.npy", self.terms)
        np.save(folder / "title_words.npy", self.words)

    @classmethod
    def open(cls, folder: Path, items: int, terms: int) -> TitleWords:
        """Read what `save` wrote. items, terms: their numbers.

        Raises `ValueError` with the name of the file that is missing or damaged.
        """
        stored = read_places(folder / "title_terms.npy", None, terms)
        first = read_offsets(folder / "title_first.npy", items, len(stored))
        words = read_vector(folder / "title_words.npy", np.int32, items)
        if (words < 0).any() or (words > np.diff(first)).any():
            raise ValueError(f"{folder / 'title_words.npy'} is damaged: a title has 0 words up to its terms")
        return cls(first, stored, words)
