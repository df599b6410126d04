"""Dense scores: how likely the model finds an item by its vector, also an item that it was not trained on.

    r_i = B (x_i − x̄)                                            row of item i; x_i is its vector
    s_i = (A h) · r_i − log (1 / |J|) Σ_{j ∈ J} exp((A h) · r_j)       its score, in nats

h is the hidden state at the end of the prompt, from which the model predicts the first code, and J a fixed sample of
the items that it was trained on. The score is the logarithm of how many times likelier the item is than the average
one; 0 says nothing. A and B are fitted to the training log after the training (`training.dense`).

    dense/state.npy, item.npy, mean.npy      A, B and x̄, float32
    dense/rows.npy                           rows of all items, float16
    dense/held_out.npy                       rows by a fit that did not know these items, float16; see `DenseIndex`
    dense/dense.json                         the dimensions
"""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import dataclass, replace
from functools import cached_property
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from index.arrays import read_numbers, read_record
from index.largest import largest

SAMPLE = 4096  # items whose mean an item is compared with
HALVES = 2
MOST_DIMENSIONS = 2**20
Floats = NDArray[np.float32]


@dataclass(frozen=True, eq=False)
class DenseHead:
    """The maps into the space of rows.

    state: A, float32 [k, d_h]. item: B, float32 [k, d_x]. mean: x̄, float32 [d_x].
    """

    state: Floats
    item: Floats
    mean: Floats

    def rows(self, vectors: Floats) -> NDArray[np.float16]:
        """Return the rows of items: float32 [n, d_x] → float16 [n, k]."""
        return ((vectors - self.mean) @ self.item.T).astype(np.float16)


@dataclass(frozen=True, eq=False)
class Hidden:
    """Items that a simulation pretends to be new. items: bool [items]. half: the half of the items that they are of."""

    items: NDArray[np.bool_]
    half: int


@dataclass(frozen=True, eq=False)
class DenseIndex:
    """The rows of a catalogue's items.

    Item i belongs to the half i mod 2. Its `held_out` row comes from a fit to the other half, which knew neither the
    item nor any event with it: so a simulation of new items does not see what the fit has learned about them.

    rows, held_out: float16 [items, k].
    trained: number of items that the model was trained on, the first ones.
    hidden: items whose held-out rows count; None for none.
    """

    head: DenseHead
    rows: NDArray[np.float16]
    held_out: NDArray[np.float16]
    trained: int
    hidden: Hidden | None = None

    def scores(self, state: Sequence[float], items: NDArray[np.int64]) -> NDArray[np.float64]:
        """Return the scores of items, float64 [n]. state: h, [d_h]. items: catalogue rows."""
        queried = self._queried(state)
        return (self.rows_of(items) @ queried - self._averages(queried, items)).astype(np.float64)

    def rows_of(self, items: NDArray[np.int64]) -> Floats:
        """Return the rows of items, float32 [n, k]. items: catalogue rows."""
        rows = self.rows[items]
        if self.hidden is not None:
            hidden = self.hidden.items[items]
            rows[hidden] = self.held_out[items[hidden]]
        return rows.astype(np.float32)

    def best(
        self, state: Sequence[float], rows: Floats, allowed: NDArray[np.bool_], limit: int
    ) -> NDArray[np.int64]:
        """Return the places of the allowed items with the highest scores, at most `limit`, best first: int64.

        rows: what `rows_of` returns for some items. allowed: whether each may be returned, bool [n].
        """
        places = np.flatnonzero(allowed)
        found = rows[places] @ self._queried(state)
        return places[largest([found], limit)]

    def updated(self, changed: Sequence[int], later: int, vectors: Floats) -> DenseIndex:
        """Return the index with other rows for changed items, and with rows of later ones.

        vectors: of the changed items, then of the later ones, float32 [changed + later, d_x].
        """
        new = self.head.rows(vectors)
        places = [*changed, *range(len(self.rows), len(self.rows) + later)]

        def with_new(rows: NDArray[np.float16]) -> NDArray[np.float16]:
            rows = np.pad(rows, ((0, later), (0, 0)))
            rows[places] = new
            return rows

        return replace(self, rows=with_new(self.rows), held_out=with_new(self.held_out))

    def hiding(self, items: NDArray[np.bool_], half: int) -> DenseIndex:
        """Return the index as if these items of one half, bool [items], were new."""
        return replace(self, hidden=Hidden(items, half))

    def save(self, folder: Path) -> None:
        """Write all parts into a new folder."""
        folder.mkdir()
        head = self.head
        np.save(folder / "state.npy", head.state.ravel())
        np.save(folder / "item.npy", head.item.ravel())
        np.save(folder / "mean.npy", head.mean)
        np.save(folder / "rows.npy", self.rows.ravel())
        np.save(folder / "held_out.npy", self.held_out.ravel())
        (width, states), vectors = head.state.shape, len(head.mean)
        about = {"width": width, "states": states, "vectors": vectors}
        (folder / "dense.json").write_text(json.dumps(about) + "\n", "utf-8")

    @classmethod
    def open(cls, folder: Path, items: int, trained: int) -> DenseIndex:
        """Read what `save` wrote. Raises `ValueError` that names the file."""
        about = read_record(folder / "dense.json")
        width, states, vectors = (
            about.whole(name, 1, MOST_DIMENSIONS) for name in ("width", "states", "vectors")
        )
        head = DenseHead(
            read_numbers(folder / "state.npy", np.float32, (width, states)),
            read_numbers(folder / "item.npy", np.float32, (width, vectors)),
            read_numbers(folder / "mean.npy", np.float32, (vectors,)),
        )
        rows = read_numbers(folder / "rows.npy", np.float16, (items, width))
        return cls(head, rows, read_numbers(folder / "held_out.npy", np.float16, (items, width)), trained)

    def _queried(self, state: Sequence[float]) -> Floats:
        """Return A h, float32 [k]."""
        queried: Floats = self.head.state @ np.asarray(state, np.float32)
        return queried

    def _averages(self, queried: Floats, items: NDArray[np.int64]) -> Floats:
        """Return log mean exp over the sample that each item is compared with: float32 [n]."""
        known = np.full(len(items), _log_mean_exp(self._sample @ queried), np.float32)
        if self.hidden is not None:
            known[self.hidden.items[items]] = _log_mean_exp(self._held_out_sample @ queried)
        return known

    @cached_property
    def _sample(self) -> Floats:
        return self.rows[_spread(np.arange(self.trained))].astype(np.float32)

    @cached_property
    def _held_out_sample(self) -> Floats:
        assert self.hidden is not None
        half = np.arange(self.hidden.half, self.trained, HALVES)
        return self.held_out[_spread(half)].astype(np.float32)


def _spread(items: NDArray[np.int64]) -> NDArray[np.int64]:
    """Return a sample of items, always the same one."""
    if len(items) <= SAMPLE:
        return items
    return np.sort(np.random.default_rng(0).choice(items, SAMPLE, replace=False))


def _log_mean_exp(values: Floats) -> float:
    top = float(values.max())
    return top + float(np.log(np.mean(np.exp(values - top))))
