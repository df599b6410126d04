"""Queries from the category paths of an item: the way in which product searches are made for logs without any.

The rule (Van Gysel et al. 2016; Ai et al. 2017): the words of a path with two levels or more, in lower case, from the
root to the leaf, without stop words, each word once. Which path of an item is taken, and whether an event is a search,
is a fixed hash of seed, person, item and time (`simulation`).
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import polars as pl

from index.words import words
from training.data.schema import SIMULATED_QUERY
from training.data.sources.simulation import Simulation

LEAST_LEVELS = 2
STOP_WORDS = frozenset("a an and as at by for from in into of on or the to with".split())  # noqa: SIM905
HOW = {
    "behaviour": "half of the interactions count as searches, by a fixed hash of (seed, person, item, time)",
    "query": "the words of a category path of the item, chosen by a fixed hash of (seed, person, item, time)",
}


def path_query(path: Sequence[str]) -> str:
    """Return the query of a path of category names, from the root; empty for a path of one level or without words."""
    if len(path) < LEAST_LEVELS:
        return ""
    return " ".join(word for word in dict.fromkeys(words(" ".join(path))) if word not in STOP_WORDS)


def with_queries(
    events: pl.DataFrame, queries: Mapping[str, Sequence[str]], name: str, seed: int
) -> pl.DataFrame:
    """Add the columns `query` (null for a recommendation) and `simulated_query` to events.

    events: columns `user_id`, `item_id`, `timestamp`. queries: of each item id; an item without any is never searched.
    name: of the data set.
    """
    simulation = Simulation(name)
    asked: list[str | None] = []
    would_ask: list[str | None] = []
    for user, item, time in events.select("user_id", "item_id", "timestamp").iter_rows():
        options = queries.get(item)
        if not options:
            asked.append(None)
            would_ask.append(None)
            continue
        about = (seed, user, item, time)
        query = options[simulation.choose("query", len(options), *about)]
        would_ask.append(query)
        asked.append(query if simulation.choose("behaviour", 2, *about) else None)
    return events.with_columns(
        pl.Series("query", asked, pl.String), pl.Series(SIMULATED_QUERY, would_ask, pl.String)
    )
