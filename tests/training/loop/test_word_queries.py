"""Word queries: made of what the item says, for events without a query alone, drawn anew each time."""

from __future__ import annotations

import numpy as np
from support.batches import CATALOGUE, source
from support.histories import histories

from index.catalogue import Catalogue, Item
from index.sequence.events import Event, Task
from index.words import words
from training.loop.word_queries import WordQueries

ITEMS = Catalogue(
    [
        Item(
            "1", "The Straße to São Paulo", categories=("Road Movie", "a category of too many words"),
            attributes={"decade": "1990s", "year": 1994},
        ),
        Item("2", "東京物語"),
        Item("3", "!!!"),
    ]
)  # fmt: skip


def test_a_query_is_one_or_two_parts_of_the_item() -> None:
    rng = np.random.default_rng(0)
    queries = WordQueries(ITEMS, 1.0)
    drawn = {queries.draw(0, rng) for _ in range(400)}
    title = words(ITEMS[0].title)
    runs = {" ".join(title[a:b]) for a in range(len(title)) for b in range(a + 1, min(a + 3, len(title)) + 1)}
    parts = runs | {"road movie", "1990s"}
    assert drawn <= parts | {f"{a} {b}" for a in parts for b in parts}
    assert parts <= drawn
    assert {"road movie 1990s", "1990s road movie"} <= drawn
    of_japanese = {queries.draw(1, rng) for _ in range(100)}  # no spaces, and no character twice
    assert of_japanese == {"東京", "京物", "物語", "東京物", "京物語", "東京物語"}
    assert queries.draw(2, rng) == ""


def test_only_events_without_a_query_get_one() -> None:
    rng = np.random.default_rng(0)
    events = [Event(0), Event(0, Task.SEARCH, "typed"), Event(2)] * 200
    assert WordQueries(ITEMS, 0.0).add(events, rng) == events
    added = WordQueries(ITEMS, 0.3).add(events, rng)
    assert [event.item for event in added] == [event.item for event in events]
    assert added[1::3] == events[1::3]
    assert added[2::3] == events[2::3]  # nothing to search it by
    searched = sum(event.behaviour is Task.SEARCH for event in added[::3])
    assert 30 <= searched <= 90


def test_every_target_stays_one_although_queries_lengthen_the_histories() -> None:
    events = sum(len(history) for history in histories())
    words_of_all = WordQueries(CATALOGUE, 1.0)
    for epoch in range(3):
        batches = source(word_queries=words_of_all).epoch(epoch)
        assert sum(sum(batch.targets.values()) for batch in batches) == events
