"""Candidates and signals of a pool that need no model: links, with known and with fresh items."""

from __future__ import annotations

from dataclasses import dataclass, field, replace

import numpy as np
import pytest
from support.pools import make_pool

from index.catalogue import Catalogue, Item
from index.pool.fusion import ITEM_SIGNALS, LINKS
from index.pool.linked import FEW, Linked
from index.pool.links.transitions import DECAY, Transitions
from index.pool.pool import LINKED, OF_ONE_CODE, Pool
from index.pool.pool_index import PoolIndex
from index.sequence.events import Task
from index.trie.allowed import Allowed
from index.trie.trie import Trie
from training.co_occurrence import fit_co_occurrence

ITEMS = 60
COLUMN = ITEM_SIGNALS[Task.RECOMMENDATION].index("transitions")


@dataclass
class Unscored:
    """A model that found nothing, and gives every candidate the same score."""

    pool_scores: list[float]
    items: list[int] = field(default_factory=list)
    scores: list[float] = field(default_factory=list)
    state: list[float] = field(default_factory=list)


@pytest.fixture(scope="module")
def index() -> PoolIndex:
    return make_pool(Catalogue(Item(f"item-{k}", f"title {k}") for k in range(ITEMS)))


def gathered(
    index: PoolIndex,
    history: list[int],
    excluded: list[int] | None = None,
    levels: int = 2,
    query: str | None = None,
) -> Pool:
    codes = np.arange(ITEMS)[:, None] if levels == 1 else np.stack(np.divmod(np.arange(ITEMS), 8), axis=1)
    allowed = Allowed.of(Trie.build(codes), None, excluded or [])
    return Pool.gather(index, allowed, query, history)


def signals(pool: Pool) -> dict[int, float]:
    rows, values = pool.signals(Unscored([-1.0] * len(pool.to_score)))
    return dict(zip(rows.tolist(), values[:, COLUMN].tolist(), strict=True))


def test_what_followed_the_last_items_is_a_candidate_the_likeliest_first(index: PoolIndex) -> None:
    pool = gathered(index, [3, 11])
    assert pool.rows.tolist() == [20, 30]
    assert pool.sources == ["transitions", "transitions"]
    assert index.transitions is not None
    rows, scores = index.transitions.after([11])
    assert signals(pool) == pytest.approx(dict(zip(rows.tolist(), np.log1p(scores / FEW), strict=True)))


def test_what_may_not_be_returned_is_no_candidate(index: PoolIndex) -> None:
    assert gathered(index, [11], excluded=[20]).rows.tolist() == [30]


def test_fresh_items_neither_follow_nor_are_followed(index: PoolIndex) -> None:
    fresh = np.zeros(ITEMS, bool)
    fresh[20] = True
    hidden = replace(index, fresh=fresh)
    pool = gathered(hidden, [11])
    assert "transitions" in pool.sources
    assert dict(zip(pool.rows.tolist(), pool.sources, strict=True))[30] == "transitions"
    assert signals(pool)[20] == 0  # a candidate, because it is new
    after, before = signals(gathered(hidden, [11, 20])), signals(gathered(hidden, [11]))
    assert after[30] == before[30]  # as if the new item were not in the history
    other = gathered(index, [11, 3])
    assert np.expm1(signals(other)[30]) == pytest.approx(DECAY * np.expm1(before[30]))


@pytest.mark.parametrize(("levels", "most"), [(1, OF_ONE_CODE), (2, LINKED)])
def test_candidates_are_bounded(levels: int, most: int, index: PoolIndex) -> None:
    histories = [[0, k] for k in range(1, ITEMS)]
    many, together = Transitions.build(histories, ITEMS), fit_co_occurrence(histories, ITEMS)
    pool = gathered(replace(index, transitions=many, co_occurrence=together), [0], levels=levels)
    assert len(pool.rows) == most


def test_what_was_taken_together_is_a_candidate_in_either_order(index: PoolIndex) -> None:
    alone = replace(index, transitions=None)
    for history, together in (([20], [11, 30]), ([11], [20, 30])):
        pool = gathered(alone, history)
        assert pool.rows.tolist() == together
        assert set(pool.sources) == {"co_occurrence"}
    assert not any(signals(gathered(alone, [11])).values())


def test_a_search_takes_linked_items_that_hold_all_words_where_an_identifier_is_one_code(
    index: PoolIndex,
) -> None:
    found = gathered(index, [11], levels=1, query="title 30")
    sources = dict(zip(found.rows.tolist(), found.sources, strict=True))
    assert sources[30] == "lexical"  # found by its words first
    assert 20 not in sources  # holds one word of two
    many = fit_co_occurrence([[11, *range(12, ITEMS)]] * 2, ITEMS)
    pool = gathered(replace(index, co_occurrence=many), [11], levels=1, query="title")
    assert pool.sources.count("lexical") == OF_ONE_CODE
    assert {"transitions", "co_occurrence"} & set(pool.sources)
    assert "co_occurrence" not in gathered(replace(index, co_occurrence=many), [11], query="title").sources


def test_a_pool_of_an_older_bundle_has_no_links(index: PoolIndex) -> None:
    assert not len(gathered(replace(index, transitions=None, co_occurrence=None), [11]).rows)


def test_what_says_nothing_of_an_item_is_plain_zero_in_an_explanation(index: PoolIndex) -> None:
    fresh = np.zeros(ITEMS, bool)
    fresh[20] = True
    pool = gathered(replace(index, fresh=fresh), [11])
    found = Unscored([-1.0] * len(pool.to_score), items=[20], scores=[-1.0])
    parts = pool.fuse(found, ITEMS).signals
    assert not np.signbit(parts[parts == 0]).any()


@pytest.mark.parametrize("missing", LINKS)
def test_each_kind_of_links_counts_alone(missing: str, index: PoolIndex) -> None:
    both, one = (Linked.by(each, [3, 11]) for each in (index, replace(index, **{missing: None})))
    rows, kept = np.arange(ITEMS), np.array(LINKS) != missing
    assert both.strength(rows)[kept].any()
    assert np.array_equal(one.strength(rows)[kept], both.strength(rows)[kept])
    assert not one.strength(rows)[~kept].any()
