"""The pool of a bundle, made from a training log and with fitted weights."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace

import numpy as np
from rich.console import Console

from index.catalogue import Catalogue
from index.pool.dense import DenseIndex
from index.pool.links.transitions import Transitions
from index.pool.pool_index import PoolIndex
from index.sequence.encoder import SequenceEncoder
from server.engine.contract import Engine
from training.co_occurrence import fit_co_occurrence
from training.data.splits import Split, rows_of, searches
from training.evaluation.floors import popularity
from training.fusion.fit import FRESH_SHARE, fit_fusion


def fitted_pool(
    engine: Engine,
    encoder: SequenceEncoder,
    catalogue: Catalogue,
    split: Split,
    search_attributes: Sequence[str],
    *,
    dense: DenseIndex | None,
    trained: int,
    fresh_share: float = FRESH_SHARE,
    later: Sequence[int] = (),
    seed: int = 0,
    console: Console | None = None,
) -> PoolIndex:
    """Return the pool of a catalogue.

    Query log, links and counts are those of the training events, weights those of the validation cases.

    dense: rows of the items by their vectors, if they have any.
    trained: number of rows that the model was trained on; later ones are fresh.
    fresh_share: share of new items among those that people take, in (0, 1).
    later: rows of items that came after the log.
    Raises `CatalogueError` for a search attribute that no item has.
    """
    counts = popularity(split.train, len(catalogue)).astype(np.int64)
    transitions = Transitions.build(rows_of(split.train), len(catalogue))
    together = fit_co_occurrence(rows_of(split.train), len(catalogue), seed=seed, console=console)
    pool = PoolIndex.build(catalogue, searches(split.train), counts, search_attributes, transitions, together)
    pool = replace(pool, fresh=np.arange(len(catalogue)) >= trained, dense=dense)
    fusion = fit_fusion(
        engine,
        encoder,
        pool,
        split.validation,
        fresh_share=fresh_share,
        later=later,
        seed=seed,
        console=console,
    )
    return replace(pool, fusion=fusion)
