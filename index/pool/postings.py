"""Postings: the items of each term, with the BM25 score that the term gives them."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from index.arrays import read_offsets, read_places, read_vector
from index.pool.item_words import MOST_COUNT
from index.trie.trie import places_in

K1, B = 1.5, 0.75
MOST_SCORE = 64.0  # an idf above it would need more items than there are
Posting = tuple[NDArray[np.int32], NDArray[np.float32]]  # rows, ascending, and a score for each


@dataclass(frozen=True, eq=False)
class Postings:
    """Items by term.

    first: int64 [terms + 1].
    rows: int32; rows[first[k] : first[k + 1]], ascending, are the items of term k.
    counts: uint16, same shape as `rows`: how often the term is in the item; None in an index of an older format.
    scores: float32, same shape: idf · f / (f + k1 (1 − b + b |item| / mean)) with f the number of times that
    the term is in the item, |item| the number of its terms, and idf = ln(1 + (N − n + ½) / (n + ½)) for n of N items.
    """

    first: NDArray[np.int64]
    rows: NDArray[np.int32]
    counts: NDArray[np.uint16] | None
    scores: NDArray[np.float32]

    @property
    def nbytes(self) -> int:
        """Bytes of the arrays."""
        counts = 0 if self.counts is None else self.counts.nbytes
        return self.first.nbytes + self.rows.nbytes + counts + self.scores.nbytes

    @cached_property
    def frequency(self) -> NDArray[np.int64]:
        """Number of items of each term: int64 [terms]."""
        return np.diff(self.first)

    @classmethod
    def build(cls, held: NDArray[np.int32], terms: int, items: int) -> Postings:
        """Build the postings.

        held: int32 [3, m], by term, then by row: row, term, and how often it is there. terms, items: their numbers.
        """
        first = np.searchsorted(held[1], np.arange(terms + 1)).astype(np.int64)
        return cls._scored(first, held[0].copy(), held[2].astype(np.uint16), items)

    @classmethod
    def _scored(
        cls, first: NDArray[np.int64], rows: NDArray[np.int32], counts: NDArray[np.uint16], items: int
    ) -> Postings:
        """Add the scores."""
        length = np.bincount(rows, counts, minlength=items)
        frequency = np.diff(first)
        idf = np.log1p((items - frequency + 0.5) / (frequency + 0.5))
        relative = K1 * (1 - B + B * length / max(float(length.mean()), 1.0))
        scores = np.repeat(idf, frequency)
        scores *= counts / (counts + relative[rows])
        return cls(first, rows, counts, scores.astype(np.float32))

    def of_term(self, term: int) -> Posting:
        """Return the rows and scores of a term."""
        begin, end = self.first[term], self.first[term + 1]
        return self.rows[begin:end], self.scores[begin:end]

    def of_all(self, terms: Sequence[int]) -> Posting:
        """Return the rows that have all of some terms, and the sums of their scores."""
        (rows, scores), *others = sorted(map(self.of_term, terms), key=lambda posting: len(posting[0]))
        for more_rows, more_scores in others:
            place, both = places_in(more_rows, rows)
            rows, scores = rows[both], scores[both] + more_scores[place[both]]
        return rows, scores

    def save(self, folder: Path) -> None:
        """Write `posting_first.npy`, `posting_rows.npy`, and `posting_counts.npy` (`posting_scores.npy` without)."""
        np.save(folder / "posting_first.npy", self.first)
        np.save(folder / "posting_rows.npy", self.rows)
        if self.counts is None:
            np.save(folder / "posting_scores.npy", self.scores)
        else:
            np.save(folder / "posting_counts.npy", self.counts)

    @classmethod
    def open(cls, folder: Path, terms: int, items: int, *, counted: bool = True) -> Postings:
        """Read what `save` wrote. terms, items: their numbers. counted: whether counts were stored, or scores.

        Raises `ValueError` with the name of the file that is missing or damaged.
        """
        rows = read_places(folder / "posting_rows.npy", None, items)
        first = read_offsets(folder / "posting_first.npy", terms, len(rows))
        if counted:
            counts = read_vector(folder / "posting_counts.npy", np.uint16, len(rows))
            if len(counts) and not (counts.min() > 0 and counts.max() <= MOST_COUNT):
                raise ValueError(
                    f"{folder / 'posting_counts.npy'} is damaged: its numbers must lie in 1 … {MOST_COUNT:,}"
                )
            return cls._scored(first, rows, counts, items)
        scores = read_vector(folder / "posting_scores.npy", np.float32, len(rows))
        if len(scores) and not (scores.min() > 0 and scores.max() < MOST_SCORE):
            raise ValueError(
                f"{folder / 'posting_scores.npy'} is damaged: its numbers must lie between 0 and {MOST_SCORE:g}"
            )
        return cls(first, rows, None, scores)
