"""The sources of candidates of one index version, besides the beam, and the weights of their signals.

    lexical/        words of the items (`LexicalIndex`)
    query_log/      items that people chose for a query (`QueryLog`)
    transitions/    what people took soon after an item (`Transitions`), unless the bundle is older
    co_occurrence/  what people took together (`CoOccurrence`), unless the bundle is older
    dense/          rows of the items by their vectors (`DenseIndex`), if items have vectors
    counts.npy      events of each row in training
    fusion.json     fitted weights (`Fusion`), if there are any
    pool.json       number of rows that the model was trained on

All but the dense rows and the weights follow from the items and the training log.
"""

from __future__ import annotations

import json
import os
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, replace
from functools import cached_property
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from index.catalogue import Catalogue
from index.files import read_array
from index.pool.dense import DenseIndex, Floats
from index.pool.fusion import Fusion
from index.pool.lexical import LexicalIndex
from index.pool.links.co_occurrence import CoOccurrence
from index.pool.links.transitions import Transitions
from index.pool.query_log import QueryLog
from index.records import Record


class PoolIndexError(ValueError):
    """The stored parts do not fit each other or the catalogue. The message names the file."""


@dataclass(frozen=True, eq=False)
class PoolIndex:
    """Everything that a pool needs but the model.

    fresh: whether the model does not know a row, bool [items].
    counts: events of each row in training, int64 [items].
    transitions, co_occurrence: None in older bundles.
    dense: None if items have no vectors.
    fusion: None as long as no weights were fitted; the beam alone ranks then.
    """

    catalogue: Catalogue
    lexical: LexicalIndex
    query_log: QueryLog
    fresh: NDArray[np.bool_]
    counts: NDArray[np.int64]
    transitions: Transitions | None = None
    co_occurrence: CoOccurrence | None = None
    dense: DenseIndex | None = None
    fusion: Fusion | None = None

    @property
    def trained(self) -> int:
        """Number of rows that the model was trained on."""
        return len(self.fresh) - len(self.fresh_rows)

    @cached_property
    def fresh_rows(self) -> NDArray[np.int64]:
        """The rows that the model does not know, ascending."""
        return np.flatnonzero(self.fresh)

    @cached_property
    def fresh_dense_rows(self) -> Floats:
        """The dense rows of `fresh_rows`, float32 [n, k]."""
        assert self.dense is not None
        return self.dense.rows_of(self.fresh_rows)

    @classmethod
    def build(
        cls,
        catalogue: Catalogue,
        log: Iterable[tuple[str, str, int]],
        counts: NDArray[np.integer],
        search_attributes: Sequence[str] = (),
        transitions: Transitions | None = None,
        co_occurrence: CoOccurrence | None = None,
    ) -> PoolIndex:
        """Build the index of a catalogue that the model was trained on.

        log: (user, query, row) of the searches in training.
        counts: int [items].
        Raises `CatalogueError` for a search attribute that no item has.
        """
        return cls(
            catalogue,
            LexicalIndex.build(catalogue, search_attributes),
            QueryLog.build(log),
            np.zeros(len(catalogue), bool),
            counts.astype(np.int64),
            transitions,
            co_occurrence,
        )

    def updated(self, catalogue: Catalogue, changed: Iterable[int], dense: DenseIndex | None) -> PoolIndex:
        """Return the index of a catalogue with later rows, which are fresh, and with changed items.

        changed: rows of the changed items.
        dense: of the new catalogue; None if items have no vectors.
        """
        later = len(catalogue) - len(self.catalogue)
        return replace(
            self,
            catalogue=catalogue,
            lexical=self.lexical.updated(catalogue, changed),
            fresh=np.pad(self.fresh, (0, later), constant_values=True),
            counts=np.pad(self.counts, (0, later)),
            transitions=None if self.transitions is None else self.transitions.updated(later),
            co_occurrence=None if self.co_occurrence is None else self.co_occurrence.updated(later),
            dense=dense,
        )

    def save(self, folder: Path) -> None:
        """Write all parts into a new folder."""
        folder.mkdir()
        self.lexical.save(folder / "lexical")
        self.query_log.save(folder / "query_log")
        np.save(folder / "counts.npy", self.counts)
        if self.transitions is not None:
            self.transitions.save(folder / "transitions")
        if self.co_occurrence is not None:
            self.co_occurrence.save(folder / "co_occurrence")
        if self.dense is not None:
            self.dense.save(folder / "dense")
        if self.fusion is not None:
            self.fusion.save(folder / "fusion.json")
        (folder / "pool.json").write_text(json.dumps({"trained": self.trained}) + "\n", "utf-8")

    @classmethod
    def open(cls, folder: Path, catalogue: Catalogue) -> PoolIndex:
        """Read the parts that `save` wrote into memory. Raises `ValueError` that names the file."""
        items = len(catalogue)
        trained = Record.read(folder / "pool.json").whole("trained", 1, items)
        counts = read_array(folder / "counts.npy", np.int64)
        if len(counts) != items or counts.min() < 0:
            raise PoolIndexError(f"{folder / 'counts.npy'} must hold a count for each of {items} items")
        lexical = LexicalIndex.open(folder / "lexical")
        if lexical.items != items:
            raise PoolIndexError(f"{folder / 'lexical'} holds {lexical.items} items, the catalogue {items}")
        transitions, together = folder / "transitions", folder / "co_occurrence"
        dense, fusion = folder / "dense", folder / "fusion.json"
        return cls(
            catalogue,
            lexical,
            QueryLog.open(folder / "query_log", items),
            np.arange(items) >= trained,
            counts,
            Transitions.open(transitions, items) if os.path.lexists(transitions) else None,
            CoOccurrence.open(together, items) if os.path.lexists(together) else None,
            DenseIndex.open(dense, items, trained) if os.path.lexists(dense) else None,
            Fusion.open(fusion) if os.path.lexists(fusion) else None,
        )
