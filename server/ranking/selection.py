"""Selection: the items that exclusions, filter and candidates of a request leave together."""

from __future__ import annotations

import operator
from collections.abc import Mapping, Sequence
from functools import reduce

import numpy as np

from index.bundle.item_index import ItemIndex, NamedItems
from index.sequence.events import Task
from index.trie.allowed import Allowed, SlotSet
from index.trie.attribute import Condition, FilterError
from server.api.errors import InvalidRequestError
from server.api.filter import FilterCondition, NumberRange
from server.api.requests import RecommendRequest
from server.ranking.candidates import Candidates


def allowed_items(
    body: RecommendRequest, history: Sequence[int], candidates: Candidates, index: ItemIndex, task: Task
) -> Allowed:
    """Return the items that may answer a request of a task. Unknown excluded ids exclude nothing.

    history: catalogue rows of the person's items.
    Raises `InvalidRequestError` for a filter that the catalogue does not know.
    """
    names = index.named(task)
    excluded = set(history) if body.excludes_history else set()
    excluded.update(row for row in map(index.catalogue.row, body.exclude) if row is not None)
    choices = [
        names.living if body.filter is None else _filtered(body.filter, names),
        _chosen(candidates, names),
    ]
    asked = [slots for slots in choices if slots is not None]
    chosen = reduce(operator.and_, asked) if asked else None
    return Allowed.of(names.trie, chosen, sorted(excluded))


def _filtered(asked: Mapping[str, FilterCondition], names: NamedItems) -> SlotSet:
    conditions: dict[str, Condition] = {
        name: condition.model_dump(exclude_none=True) if isinstance(condition, NumberRange) else condition
        for name, condition in asked.items()
    }
    try:
        return names.filters.select(conditions)
    except FilterError as error:
        raise InvalidRequestError.at("filter", str(error)) from error


def _chosen(candidates: Candidates, names: NamedItems) -> SlotSet | None:
    if candidates.rows is None:
        return None
    rows = np.array(candidates.rows, np.int64)
    return SlotSet.of_members(names.trie.slot_of_item[rows], names.trie.items)
