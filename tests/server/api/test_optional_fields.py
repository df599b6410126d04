"""Optional fields: null counts as absent, and the OpenAPI document says what the server takes."""

from __future__ import annotations

from typing import Any

import jsonschema_rs
import pytest
from pydantic import BaseModel
from starlette.testclient import TestClient

from server.api.filter import NumberRange
from server.api.requests import HistoryEntry, RecommendRequest, SearchRequest

ENTRY = {"item_id": "item-3"}
BASES: list[tuple[type[BaseModel], str, dict[str, Any]]] = [
    (RecommendRequest, "/recommend", {"history": [ENTRY], "limit": 4}),
    (SearchRequest, "/search", {"query": "river", "history": [ENTRY], "limit": 4}),
]


def optional(model: type[BaseModel]) -> list[str]:
    return [name for name, field in model.model_fields.items() if not field.is_required()]


def answered(client: TestClient, path: str, body: dict[str, Any]) -> Any:
    """Return the items and the reason of an answer. Fails if the request is refused."""
    response = client.post(path, json=body)
    assert response.status_code == 200, response.text
    answer = response.json()
    return [item["item_id"] for item in answer["items"]], answer["fewer_than_limit"]


@pytest.mark.parametrize(
    ("path", "body", "field"),
    [(path, body, name) for model, path, body in BASES for name in optional(model)],
)
def test_null_is_as_good_as_no_field(client: TestClient, path: str, body: dict[str, Any], field: str) -> None:
    absent = {name: value for name, value in body.items() if name != field}
    assert answered(client, path, body | {field: None}) == answered(client, path, absent)


@pytest.mark.parametrize("field", optional(HistoryEntry))
def test_null_in_a_history_entry_is_as_good_as_no_field(client: TestClient, field: str) -> None:
    nothing = answered(client, "/recommend", {"history": [ENTRY]})
    assert answered(client, "/recommend", {"history": [ENTRY | {field: None}]}) == nothing


@pytest.mark.parametrize("bound", optional(NumberRange))
def test_a_null_bound_limits_nothing(client: TestClient, bound: str) -> None:
    other = "lt" if bound.startswith("g") else "gte"
    ranges = [{other: 1970}, {other: 1970, bound: None}]
    one, two = (answered(client, "/recommend", {"filter": {"year": each}, "limit": 60}) for each in ranges)
    assert one == two
    assert len(one[0]) in (20, 40)


@pytest.mark.parametrize(
    "empty", [{"filter": {}}, {"candidates": []}, {"exclude": []}, {"history": []}], ids=str
)
def test_nothing_given_is_no_condition(client: TestClient, empty: dict[str, Any]) -> None:
    assert answered(client, "/recommend", empty | {"limit": 60}) == answered(
        client, "/recommend", {"limit": 60}
    )


TAKEN: list[dict[str, Any]] = [
    *({field: None} for field in optional(RecommendRequest)),
    *({"history": [ENTRY | {field: None}]} for field in optional(HistoryEntry)),
    *({"filter": {"year": {"gte": 1990, bound: None}}} for bound in ("gt", "lt", "lte")),
    {"filter": {}}, {"filter": {"year": {"gte": 1990}}}, {"filter": {"categories": ["Drama", "Comedy"]}},
    {"filter": {"year": 1990}}, {"filter": {"categories": True}}, {"filter": {"categories": "Drama"}},
    {"candidates": []}, {"candidates": ["nowhere"]}, {"exclude": []}, {"history": []}, {},
    {"exclude_history": True}, {"explain": False}, {"strict": False}, {"fallback": "none"},
]  # fmt: skip
REFUSED: list[dict[str, Any]] = [
    {"unknown": None}, {"history": {}}, {"history": ["item-1"]}, {"history": [{}]}, {"history": [None]},
    {"history": [{"item_id": None}]}, {"history": [{"item_id": ""}]}, {"history": [ENTRY | {"x": None}]},
    {"history": [ENTRY | {"behaviour": "other"}]}, {"limit": 0}, {"limit": "1"}, {"beam_width": 0},
    {"timeout_ms": 0}, {"exclude": "a"}, {"exclude": [None]}, {"candidates": [""]}, {"candidates": {}},
    {"filter": []}, {"filter": {"year": None}}, {"filter": {"year": []}}, {"filter": {"year": {}}},
    {"filter": {"year": {"gte": None}}}, {"filter": {"year": {"eq": 1}}}, {"filter": {"year": {"gte": "1"}}},
    {"filter": {"year": [[1]]}}, {"filter": {"year": [None]}}, {"filter": {"categories": "a" * 513}},
    {"filter": {f"a{k}": 1 for k in range(33)}}, {"filter": {"year": [1] * 1001}},
    {"exclude_history": "yes"}, {"explain": 1}, {"strict": "true"}, {"fallback": "other"},
    {"exclude": ["a"] * 10_001}, {"candidates": ["a"] * 10_001},
]  # fmt: skip


@pytest.mark.parametrize("path", ["/recommend", "/search"])
def test_the_document_allows_what_is_taken_and_forbids_what_is_refused(client: TestClient, path: str) -> None:
    document = client.get("/openapi.json").json()
    name = {"/recommend": "RecommendRequest", "/search": "SearchRequest"}[path]
    schema = {"$ref": f"#/components/schemas/{name}", "components": document["components"]}
    validator = jsonschema_rs.Draft202012Validator(schema)
    query: dict[str, Any] = {"query": "river"} if path == "/search" else {}
    for body in TAKEN:
        assert client.post(path, json=query | body).status_code == 200, body
        assert validator.is_valid(query | body), body
    for body in REFUSED:
        assert client.post(path, json=query | body).status_code == 422, body
        assert not validator.is_valid(query | body), body
    for wrong in [{}, {"query": None}, {"query": ""}, {"query": " \n"}] if query else []:
        assert client.post(path, json=wrong).status_code == 422, wrong
        assert not validator.is_valid(wrong), wrong
