"""The best items of a match, compared with sorting all of them, under any filter."""

from __future__ import annotations

from itertools import chain, zip_longest

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from index.catalogue import Catalogue, Item
from index.pool.lexical import LexicalIndex
from index.pool.match import LexicalMatch, top
from index.trie.allowed import Allowed, SlotSet
from index.trie.trie import Trie

WORDS = st.sampled_from(["ab", "ba", "cd", "dc"])
TITLES = st.lists(WORDS, min_size=1, max_size=3).map(" ".join)


def expected(match: LexicalMatch, rows: list[int], limit: int, popularity: np.ndarray) -> list[int]:
    """Return the order that `top` promises, by sorting."""
    named = {*match.title_rows.tolist(), *match.attribute_rows.tolist()} & set(rows)
    exact = sorted(named, key=lambda row: (-popularity[row], -match.scores[row], row))[: max(1, limit // 2)]
    matching = [row for row in rows if match.found[row]]
    by_words = sorted(matching, key=lambda row: (-match.scores[row], -popularity[row], row))[:limit]
    every = [row for row in matching if match.all_words[row]]
    by_popularity = sorted(every, key=lambda row: (-popularity[row], -match.scores[row], row))[:limit]
    pairs = chain.from_iterable(zip_longest(by_words, by_popularity))
    return list(dict.fromkeys(row for row in chain(exact, pairs) if row is not None))[:limit]


@pytest.mark.parametrize(
    ("group", "few"), [(64, 50_000), (2, 3), (1, 0)]
)  # the last two: as in a large catalogue
@given(st.lists(TITLES, min_size=1, max_size=25), TITLES, st.integers(1, 12), st.data())
@settings(max_examples=200, deadline=None)
def test_top_is_what_sorting_all_allowed_items_gives(
    group: int, few: int, titles: list[str], query: str, limit: int, data: st.DataObject
) -> None:
    items = len(titles)
    index = LexicalIndex.build(
        Catalogue(Item(f"#{k}", title, attributes={"code": title[:2]}) for k, title in enumerate(titles)),
        ["code"],
    )
    rng = np.random.default_rng(items)
    trie = Trie.build(rng.integers(0, 3, (items, 2)))
    popularity = rng.integers(0, 3, items).astype(np.float64)  # many ties
    chosen = data.draw(st.none() | st.sets(st.integers(0, items - 1)))
    excluded = data.draw(st.sets(st.integers(0, items - 1), max_size=5))
    slots = None if chosen is None else SlotSet.of_members(trie.slot_of_item[sorted(chosen)], items)
    allowed = Allowed.of(trie, slots, sorted(excluded))
    match = index.match(query)
    rows = sorted((set(range(items)) if chosen is None else chosen) - excluded)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("index.pool.match.GROUP", group)
        patch.setattr("index.pool.match.FEW", few)
        patch.setattr("index.pool.match.MORE", 2)
        found = top(match, allowed, limit, popularity)
    assert found.tolist() == expected(match, rows, limit, popularity)
    assert found.dtype == np.int64
    matching = {row for row in rows if match.found[row]} | set(rows) & {*match.attribute_rows.tolist()}
    assert len(found) == min(limit, len(matching))  # no dead end


def test_a_popular_item_with_all_words_is_in_the_pool_although_many_score_higher() -> None:
    titles = ["star"] * 50 + ["a long title in which the word star comes late"]
    index = LexicalIndex.build(Catalogue(Item(f"#{k}", title) for k, title in enumerate(titles)))
    trie = Trie.build(np.arange(51)[:, None])
    popularity = np.zeros(51)
    popularity[50] = 7
    assert 50 in top(index.match("star"), Allowed.of(trie), 4, popularity)


def test_an_item_id_is_found_though_no_text_holds_it() -> None:
    index = LexicalIndex.build(Catalogue([Item("X-77/a", "star"), Item("b", "star")]))
    allowed = Allowed.of(Trie.build(np.arange(2)[:, None]))
    assert top(index.match("x77a"), allowed, 5, np.zeros(2)).tolist() == [0]
    assert top(index.match("x77a"), allowed.without([0]), 5, np.zeros(2)).tolist() == []
    assert top(index.match("!?"), allowed, 5, np.zeros(2)).tolist() == []
