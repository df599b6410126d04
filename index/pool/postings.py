"""Postings: the items of each term, with the BM25 score that the term gives them."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from index.pool.arrays import places_in, read_offsets, read_places, read_vector
from index.trie.trie import ranges

K1, B = 1.5, 0.75
MOST_SCORE = 64.0  # an idf above it would need more items than there are
Posting = tuple[NDArray[np.int32], NDArray[np.float32]]  # rows, ascending, and a score for each


@dataclass(frozen=True, eq=False)
class Postings:
    """Items by term.

    first: int64 [terms + 1].
    rows: int32; rows[first[k] : first[k + 1]], ascending, are the items of term k.
    scores: float32, same shape as `rows`: idf · f / (f + k1 (1 − b + b |item| / mean)) with f the number of times that
    the term is in the item, |item| the number of its terms, and idf = ln(1 + (N − n + ½) / (n + ½)) for n of N items.
    """

    first: NDArray[np.int64]
    rows: NDArray[np.int32]
    scores: NDArray[np.float32]

    @property
    def nbytes(self) -> int:
        """Bytes of the arrays."""
        return self.first.nbytes + self.rows.nbytes + self.scores.nbytes

    @cached_property
    def frequency(self) -> NDArray[np.int64]:
        """Number of items of each term: int64 [terms]."""
        return np.diff(self.first)

    @classmethod
    def build(
        cls, terms_of: Sequence[Sequence[int]], number: dict[str, int], order: Sequence[int]
    ) -> Postings:
        """Build the postings by bm25s, variant Lucene.

        terms_of: numbers of the terms of each item, as often as they occur.
        number: of each term, 0, 1, 2, …
        order: numbers of the terms in the order that the postings shall have.
        """
        import bm25s  # loads SciPy, which a server does not need

        model = bm25s.BM25(k1=K1, b=B, method="lucene")
        with np.errstate(invalid="ignore"):  # the mean length of items without terms
            model.index((terms_of, number), create_empty_token=False, show_progress=False)
        first = np.asarray(model.scores["indptr"], np.int64)
        begin, end = first[:-1][order], first[1:][order]
        _, source = ranges(begin, end)
        rows = model.scores["indices"].astype(np.int32)[source]
        scores = model.scores["data"].astype(np.float32)[source]
        return cls(np.concatenate([[0], np.cumsum(end - begin)]), rows, scores)

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
        """Write `posting_first.npy`, `posting_rows.npy` and `posting_scores.npy`."""
        np.save(folder / "posting_first.npy", self.first)
        np.save(folder / "posting_rows.npy", self.rows)
        np.save(folder / "posting_scores.npy", self.scores)

    @classmethod
    def open(cls, folder: Path, terms: int, items: int) -> Postings:
        """Read what `save` wrote. terms, items: their numbers.

        Raises `ValueError` with the name of the file that is missing or damaged.
        """
        rows = read_places(folder / "posting_rows.npy", None, items)
        scores = read_vector(folder / "posting_scores.npy", np.float32, len(rows))
        if len(scores) and not (scores.min() > 0 and scores.max() < MOST_SCORE):
            raise ValueError(
                f"{folder / 'posting_scores.npy'} is damaged: its numbers must lie between 0 and {MOST_SCORE:g}"
            )
        return cls(read_offsets(folder / "posting_first.npy", terms, len(rows)), rows, scores)
