"""Allowed items against brute force, over random identifiers and choices."""

from __future__ import annotations

import numpy as np
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra.numpy import arrays
from numpy.typing import NDArray

from index.trie.allowed import Allowed, SlotSet
from index.trie.trie import Trie

tables = st.tuples(st.integers(1, 60), st.integers(1, 4)).flatmap(
    lambda shape: arrays(np.int32, shape, elements=st.integers(0, 7))
)


def chosen_slots(trie: Trie, rows: set[int]) -> SlotSet:
    return SlotSet.of_members(trie.slot_of_item[sorted(rows)], trie.items)


@given(tables, st.data())
@settings(max_examples=200, deadline=None)
def test_a_node_is_alive_while_an_item_below_it_is_allowed(
    codes: NDArray[np.int32], data: st.DataObject
) -> None:
    trie = Trie.build(codes)
    rows = st.sets(st.integers(0, len(codes) - 1))
    chosen = data.draw(st.none() | rows)
    excluded = data.draw(rows)
    allowed = Allowed.of(trie, None if chosen is None else chosen_slots(trie, chosen), [*excluded, *excluded])
    picked = set(range(len(codes))) if chosen is None else chosen
    left = {tuple(codes[row].tolist()) for row in picked - excluded}
    there = {tuple(codes[row].tolist()) for row in picked}
    assert allowed.count == len(picked - excluded)
    nodes, prefixes = np.array([0]), [()]
    for depth in range(trie.levels + 1):
        expected = [any(row[:depth] == prefix for row in left) for prefix in prefixes]
        assert allowed.alive(depth, nodes).tolist() == expected
        if depth < trie.levels:
            parent, nodes, code = allowed.expand(depth, nodes)
            prefixes = [(*prefixes[p], c) for p, c in zip(parent.tolist(), code.tolist(), strict=True)]
            assert prefixes == sorted({row[: depth + 1] for row in there})
    slots = np.arange(trie.items)
    assert {int(trie.slot_items[s]) for s in slots[allowed.holds(slots)]} == picked - excluded


@given(tables, st.data())
@settings(max_examples=100, deadline=None)
def test_both_ways_to_expand_agree(codes: NDArray[np.int32], data: st.DataObject) -> None:
    """Few chosen slots are visited one by one; many are checked child by child."""
    trie = Trie.build(codes)
    chosen = chosen_slots(trie, data.draw(st.sets(st.integers(0, len(codes) - 1))))
    allowed = Allowed.of(trie, chosen)
    depth = data.draw(st.integers(0, trie.levels - 1))
    count = 1 if depth == 0 else len(trie.code[depth - 1])
    nodes = np.array(data.draw(st.lists(st.integers(0, count - 1), min_size=1, max_size=8)))
    parent, child, code = trie.expand(depth, nodes)
    alive = allowed.alive(depth + 1, child)
    found = allowed.expand(depth, nodes)
    for mine, theirs in zip(found, (parent, child, code), strict=True):
        assert np.array_equal(mine, theirs[alive])


@given(st.integers(1, 200), st.data())
@settings(max_examples=50, deadline=None)
def test_two_choices_together_are_what_both_hold(total: int, data: st.DataObject) -> None:
    some = st.sets(st.integers(0, total - 1))
    left, right = data.draw(some), data.draw(some)
    both = SlotSet.of_members(np.array([*left], int), total) & SlotSet.of_members(
        np.array([*right], int), total
    )
    assert both.members.tolist() == sorted(left & right)
    assert len(both) == int(both.bits.rank(np.array([total]))[0])
