"""Bounds of items and catalogues: what no request could name, and what would take an index of its own for nothing."""

from __future__ import annotations

from typing import Any

import pytest

from index.catalogue import MAX_ATTRIBUTES, MAX_ID_CHARS, MAX_TITLE_CHARS, Catalogue, CatalogueError, Item
from server.api.requests import HistoryEntry


@pytest.mark.parametrize("item_id", ["a", " a", 7, "ä" * MAX_ID_CHARS, "a b/c?d", "日本"])
def test_an_id_that_an_item_may_have_can_be_requested(item_id: str | int) -> None:
    item = Item.from_json({"item_id": item_id, "title": "t"})
    assert HistoryEntry(item_id=item.item_id).item_id == str(item_id)


@pytest.mark.parametrize(
    ("record", "reason"),
    [
        *(({"item_id": bad}, "'item_id' must be") for bad in ("", " ", "\t", "a\0", "a\nb", "x" * (MAX_ID_CHARS + 1))),
        *(({"item_id": bad}, "'item_id' must be") for bad in (None, True, 1.5, [])),
        ({"title": "t" * (MAX_TITLE_CHARS + 1)}, "put long texts into 'description'"),
        ({"title": " "}, "'title' must be a non-empty string"),
    ],
    ids=lambda value: str(value)[:40],
)  # fmt: skip
def test_what_no_request_could_name_is_refused(record: dict[str, Any], reason: str) -> None:
    with pytest.raises(CatalogueError, match=reason) as refused:
        Item.from_json({"item_id": "a", "title": "t"} | record)
    assert len(str(refused.value)) < 800


def test_a_catalogue_has_a_bounded_number_of_attributes() -> None:
    def items(count: int) -> list[Item]:
        return [Item(str(k), "t", attributes={f"a{k}": 1}) for k in range(count)]

    assert len(Catalogue(items(MAX_ATTRIBUTES))) == MAX_ATTRIBUTES
    with pytest.raises(CatalogueError, match="1,001 different attributes"):
        Catalogue(items(MAX_ATTRIBUTES + 1))
