"""Which items may answer a request: what its exclusions, its filter and its candidates leave together."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from index.allowed import Allowed, SlotSet
from index.bundle import Bundle
from index.filters import Condition, FilterError
from server.errors import InvalidRequestError
from server.schemas import NumberRange, RecommendRequest


def allowed_items(body: RecommendRequest, history: Sequence[int], bundle: Bundle) -> Allowed:
    """history: catalogue rows of the person's items. Raises `InvalidRequestError` for a filter or a
    candidate that the catalogue does not know. Excluded ids that it does not know exclude nothing."""
    excluded = set(history) if body.exclude_history else set()
    excluded.update(row for row in map(bundle.catalogue.row, body.exclude) if row is not None)
    chosen = [_filtered(body, bundle), _candidates(body, bundle)]
    known = [slots for slots in chosen if slots is not None]
    both = known[0] & known[1] if len(known) == 2 else next(iter(known), None)
    return Allowed.of(bundle.trie, both, sorted(excluded))


def why_fewer(found: int, limit: int, allowed: Allowed) -> str | None:
    """Why an answer holds fewer than `limit` items; None if it does not."""
    if found >= limit:
        return None
    if found < allowed.count:
        return f"the beam search ended with {found} items"
    items = allowed.trie.items
    if allowed.count == items:
        return f"the catalogue holds only {items} items"
    asked = "filter, candidates and exclusions" if allowed.chosen is not None else "exclusions"
    return f"the {asked} leave {allowed.count} of the catalogue's {items} items"


def _filtered(body: RecommendRequest, bundle: Bundle) -> SlotSet | None:
    if body.filter is None:
        return None
    conditions: dict[str, Condition] = {
        name: asked.model_dump(exclude_none=True) if isinstance(asked, NumberRange) else asked
        for name, asked in body.filter.items()
    }
    try:
        return bundle.filters.select(conditions)
    except FilterError as error:
        raise InvalidRequestError.at("filter", str(error)) from error


def _candidates(body: RecommendRequest, bundle: Bundle) -> SlotSet | None:
    if body.candidates is None:
        return None
    rows = []
    for position, item_id in enumerate(body.candidates):
        row = bundle.catalogue.row(item_id)
        if row is None:
            raise InvalidRequestError.at(f"candidates.{position}", "the catalogue holds no such item")
        rows.append(row)
    return SlotSet.of_members(bundle.trie.slot_of_item[np.array(rows)], bundle.trie.items)
