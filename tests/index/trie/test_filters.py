"""Attribute filters against a check of every item."""

from __future__ import annotations

import tempfile
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from index.catalogue import Catalogue, Item
from index.trie.allowed import SlotSet
from index.trie.attribute import BOUNDS, FilterError
from index.trie.filters import Filters
from index.trie.trie import Trie

texts = st.sampled_from(["red", "blue", "green", "true", "1", "", "Señorita 星"])
numbers = st.integers(-3, 3) | st.sampled_from([0.5, -2.25, 1e300])
values = (
    texts | numbers | st.booleans() | st.lists(texts, max_size=3) | st.lists(st.integers(-3, 3), max_size=3)
)
catalogues = st.lists(
    st.dictionaries(st.sampled_from(["colour", "size"]), values, max_size=2), min_size=1, max_size=30
)
conditions = (
    texts
    | numbers
    | st.booleans()
    | st.lists(texts | numbers | st.booleans(), min_size=1, max_size=3)
    | st.dictionaries(st.sampled_from(BOUNDS), numbers, min_size=1)
)


def kind(value: Any) -> str:
    return "truth" if isinstance(value, bool) else "text" if isinstance(value, str) else "number"


def meets(value: Any, condition: Any) -> bool:
    """A boolean is no number and no text: true is neither 1 nor "true"."""
    if isinstance(value, list):
        return any(meets(one, condition) for one in value)
    if isinstance(condition, list):
        return any(meets(value, one) for one in condition)
    if isinstance(condition, dict):
        tests = {
            "gt": lambda bound: value > bound,
            "gte": lambda bound: value >= bound,
            "lt": lambda bound: value < bound,
            "lte": lambda bound: value <= bound,
        }
        return kind(value) == "number" and all(tests[name](bound) for name, bound in condition.items())
    return kind(value) == kind(condition) and bool(value == condition)


def world(attributes: list[dict[str, Any]], seed: int = 0) -> tuple[Catalogue, Trie]:
    catalogue = Catalogue(Item(f"{k}", f"Item {k}", attributes=given) for k, given in enumerate(attributes))
    return catalogue, Trie.build(np.random.default_rng(seed).integers(0, 3, (len(catalogue), 3)))


@given(catalogues, st.dictionaries(st.sampled_from(["colour", "size"]), conditions, min_size=1))
@settings(max_examples=300, deadline=None)
def test_items_that_meet_every_condition_are_chosen(
    attributes: list[dict[str, Any]], asked: dict[str, Any]
) -> None:
    catalogue, trie = world(attributes)
    filters = Filters.build(catalogue, trie)
    if not set(asked) <= set(filters.names):
        with pytest.raises(FilterError, match="no item has such an attribute"):
            filters.select(asked)
        return
    rows = sorted(trie.slot_items[filters.select(asked).members].tolist())
    expected = [
        row
        for row, item in enumerate(catalogue)
        if all(name in item.attributes and meets(item.attributes[name], c) for name, c in asked.items())
    ]
    assert rows == expected


@given(catalogues, catalogues, st.data())
def test_an_update_gives_the_filters_that_are_built_anew(
    old: list[dict[str, Any]], given: list[dict[str, Any]], data: st.DataObject
) -> None:
    """Items are changed and added, and all get other slots; the others are not read again."""
    before, trie = world(old)
    rows = data.draw(st.lists(st.integers(0, len(old) - 1), unique=True, max_size=len(given)))
    changed = {
        row: Item(f"{row}", "Changed", attributes=each) for row, each in zip(rows, given, strict=False)
    }
    new = [Item(f"new {k}", "New", attributes=each) for k, each in enumerate(given[len(rows) :])]
    after = before.updated(changed, new)
    later = Trie.build(np.random.default_rng(len(after)).permutation(len(after))[:, None])
    updated = Filters.build(before, trie).updated(trie, after, changed, later, None)
    anew = Filters.build(after, later)
    with tempfile.TemporaryDirectory() as name:
        for each, folder in ((updated, "updated"), (anew, "anew")):
            each.save(Path(name) / folder)
        for path in (Path(name) / "anew").iterdir():
            assert (Path(name) / "updated" / path.name).read_bytes() == path.read_bytes(), path.name
    assert updated.names == anew.names


def test_categories_are_found_by_every_step_of_their_path() -> None:
    paths = (("Beauty > Nails > Polish", "Gifts"), ("Beauty > Hair",), ("Beautyful",), ())
    catalogue = Catalogue(Item(f"{k}", "x", categories=each) for k, each in enumerate(paths))
    trie = Trie.build(np.array([[3], [1], [2], [0]]))
    filters = Filters.build(catalogue, trie)
    found = {
        path: sorted(trie.slot_items[filters.select({"categories": path}).members].tolist())
        for path in ("Beauty", "Beauty > Nails", "Gifts", "Nails")
    }
    assert found == {"Beauty": [0, 1], "Beauty > Nails": [0], "Gifts": [0], "Nails": []}


def test_values_that_nobody_can_ask_for_are_left_out() -> None:
    catalogue, trie = world(
        [{"n": 10**400, "text": "x" * 513}, {"n": 3, "text": "x" * 512}, {"n": 2**53 + 1}]
    )
    filters = Filters.build(catalogue, trie)
    assert trie.slot_items[filters.select({"n": {"gte": 0}}).members].tolist() in ([1, 2], [2, 1])
    assert trie.slot_items[filters.select({"text": "x" * 512}).members].tolist() == [1]
    assert len(filters.select({"text": "x" * 513})) == 0


def test_removed_items_meet_no_condition() -> None:
    catalogue, trie = world([{"year": 1990}] * 4)
    living = SlotSet.of_members(trie.slot_of_item[[0, 2]], 4)
    chosen = Filters.build(catalogue, trie, living).select({"year": 1990})
    assert sorted(trie.slot_items[chosen.members].tolist()) == [0, 2]


def test_the_way_to_disk_and_back(tmp_path: Path) -> None:
    catalogue, trie = world([{"year": 1990 + k % 7, "genre": ["a", "b"][k % 2]} for k in range(40)])
    filters = Filters.build(catalogue, trie)
    filters.save(tmp_path)
    again = Filters.open(tmp_path, trie.items)
    asked: dict[str, Any] = {"year": {"gt": 1991, "lte": 1995}, "genre": "a"}
    assert again.names == ["genre", "year"]
    assert np.array_equal(again.select(asked).members, filters.select(asked).members)
    assert len(again.select(asked)) > 0
    with pytest.raises(FilterError, match=r"attributes are: genre, year"):
        again.select({"colour": "red"})


def test_a_range_without_a_known_bound_is_refused() -> None:
    catalogue, trie = world([{"year": 1990}])
    filters = Filters.build(catalogue, trie)
    for asked in ({}, {"from": 3}):
        with pytest.raises(FilterError, match="gt, gte, lt, lte"):
            filters.select({"year": asked})


def test_compiled_filters_are_kept_and_the_oldest_forgotten(monkeypatch: pytest.MonkeyPatch) -> None:
    catalogue, trie = world([{"year": k} for k in range(200)])
    filters = Filters.build(catalogue, trie)
    first = filters.select({"year": 0})
    assert filters.select({"year": 0}) is first
    monkeypatch.setattr("index.trie.filters.COMPILED_BYTES", 10 * first.nbytes)
    for year in range(1, 20):
        filters.select({"year": year})
    assert filters.select({"year": 19}) is filters.select({"year": 19})
    assert filters.select({"year": 0}) is not first
