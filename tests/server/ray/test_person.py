"""Requests whose prompts begin alike are of one person; what is not valid breaks nothing."""

from __future__ import annotations

import json
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from server.ray.exchange import Sent
from server.ray.person import FIRST_ITEMS, person_of


def person(body: Any, path: str = "/v1/recommend", method: str = "POST") -> str:
    content = body if isinstance(body, bytes) else json.dumps(body).encode()
    return person_of(Sent(method, path, path.encode(), b"", [], None, content))


def history(*items: str) -> list[dict[str, str]]:
    return [{"item_id": item} for item in items]


def test_a_growing_history_stays_with_its_person() -> None:
    items = [f"item-{k}" for k in range(30)]
    keys = {
        person({"history": history(*items[:n]), **more}, path)
        for n in range(FIRST_ITEMS, 30)
        for path, more in (("/recommend", {}), ("/v1/search", {"query": "river"}))
    }
    assert len(keys) == 1


def test_other_first_items_are_another_person() -> None:
    keys = {person({"history": history(*(f"item-{(k + j) % 50}" for j in range(6)))}) for k in range(50)}
    assert len(keys) == 50


def test_a_user_id_counts_more_than_the_history() -> None:
    keys = {person({"user_id": "anna", "history": history(*items)}) for items in ((), ("a",), ("b", "c"))}
    assert len(keys) == 1
    assert person({"user_id": "berta"}) not in keys
    assert person({"history": history("user", "anna")}) not in keys  # an item named like the parts of a key


def test_the_key_does_not_show_the_person() -> None:
    assert "anna" not in person({"user_id": "anna"})


@pytest.mark.parametrize(
    ("path", "method"),
    [("/v1/batch", "POST"), ("/info", "GET"), ("/recommend", "GET"), ("/v1/events", "POST"), ("/", "GET")],
)
def test_other_requests_are_nobodys(path: str, method: str) -> None:
    assert person({"user_id": "anna", "history": history("a")}, path, method) == ""


@pytest.mark.parametrize(
    "body", [b"", b"{", b"\xff", b"[]", b"1", b"NaN", {}, {"history": []}, {"history": 3}, {"user_id": None}]
)
def test_what_names_nobody_has_no_key(body: Any) -> None:
    assert person(body) == ""


VALUES = st.recursive(
    st.none() | st.booleans() | st.integers() | st.text(),
    lambda each: st.lists(each, max_size=3) | st.dictionaries(st.text(max_size=4), each, max_size=3),
    max_leaves=8,
)


@given(user_id=VALUES, entries=VALUES | st.lists(VALUES, max_size=6))
def test_no_json_breaks_it(user_id: Any, entries: Any) -> None:
    body = {"user_id": user_id, "history": entries}
    assert person(body) == person(body)
    assert len(person(body)) in (0, 32)
