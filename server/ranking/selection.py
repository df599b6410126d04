"""Selection: the items that exclusions, filter and candidates of a request leave together."""

from __future__ import annotations

import operator
from collections.abc import Mapping, Sequence
from functools import reduce

import numpy as np

from index.bundle.item_index import ItemIndex
from index.trie.allowed import Allowed, SlotSet
from index.trie.filters import Condition, FilterError
from server.api.errors import InvalidRequestError
from server.api.requests import FilterCondition, NumberRange, RecommendRequest


def allowed_items(body: RecommendRequest, history: Sequence[int], index: ItemIndex) -> Allowed:
    """Return the items that may answer a request. Unknown excluded ids exclude nothing.

    history: catalogue rows of the person's items.
    Raises `InvalidRequestError` for a filter or a candidate that the catalogue does not know.
    """
    excluded = set(history) if body.exclude_history else set()
    excluded.update(row for row in map(index.catalogue.row, body.exclude) if row is not None)
    choices = [
        index.living if body.filter is None else _filtered(body.filter, index),
        _candidates(body, index),
    ]
    asked = [slots for slots in choices if slots is not None]
    chosen = reduce(operator.and_, asked) if asked else None
    return Allowed.of(index.trie, chosen, sorted(excluded))


def why_fewer(found: int, limit: int, allowed: Allowed, index: ItemIndex) -> str | None:
    """Return the reason why an answer holds fewer than `limit` items; None if it does not."""
    if found >= limit:
        return None
    if found < allowed.count:
        return f"the beam search ended with {found} items"
    items = len(index.catalogue) - len(index.removed)
    if allowed.count == items:
        return f"the catalogue holds only {items} items"
    return f"filter, candidates and exclusions leave {allowed.count} of the catalogue's {items} items"


def _filtered(asked: Mapping[str, FilterCondition], index: ItemIndex) -> SlotSet:
    conditions: dict[str, Condition] = {
        name: condition.model_dump(exclude_none=True) if isinstance(condition, NumberRange) else condition
        for name, condition in asked.items()
    }
    try:
        return index.filters.select(conditions)
    except FilterError as error:
        raise InvalidRequestError.at("filter", str(error)) from error


def _candidates(body: RecommendRequest, index: ItemIndex) -> SlotSet | None:
    if body.candidates is None:
        return None
    rows = []
    for position, item_id in enumerate(body.candidates):
        row = index.catalogue.row(item_id)
        if row is None:
            raise InvalidRequestError.at(f"candidates.{position}", "the catalogue holds no such item")
        rows.append(row)
    return SlotSet.of_members(index.trie.slot_of_item[np.array(rows)], index.trie.items)
