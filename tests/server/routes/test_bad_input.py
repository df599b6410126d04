"""Requests that cannot be answered: each gets a clear, small problem document that repeats no value of the request.

Of what a client sent, only the name of an unknown field is repeated.
"""

from __future__ import annotations

import json
from typing import Any

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from starlette.testclient import TestClient

from server.api.errors import MAX_NAME_CHARS, MAX_PROBLEM_BYTES, PROBLEM_JSON
from server.api.requests import HistoryEntry, SearchRequest

SECRET = "s3cret-words"
FIELD = "unheard-of"
JSON = {"content-type": "application/json"}


def check_problem(response: Any, status: int) -> dict[str, Any]:
    """Check that the response is a problem document of this status and repeats no value of the request."""
    assert response.status_code == status, response.text
    assert response.headers["content-type"] == PROBLEM_JSON
    assert len(response.content) <= MAX_PROBLEM_BYTES
    assert SECRET not in response.text
    assert "Traceback" not in response.text
    problem = response.json()
    assert problem["status"] == status
    assert problem["type"].startswith("urn:gems:problem:")
    assert problem["request_id"] == response.headers["x-request-id"]
    assert problem["title"]
    assert problem["detail"]
    return problem


@pytest.mark.parametrize(
    ("path", "body", "where"),
    [
        ("/search", {}, "body.query"),
        ("/search", {"query": ""}, "body.query"),
        ("/search", {"query": " \t\n "}, "body.query"),
        ("/search", {"query": "?! … \u200b"}, "body.query"),
        ("/search", {"query": "❤️"}, "body.query"),
        ("/search", {"query": None}, "body.query"),
        ("/search", {"query": 5}, "body.query"),
        ("/search", {"query": [SECRET]}, "body.query"),
        ("/search", {"query": SECRET * 100}, "body.query"),
        ("/search", {"query": "a", FIELD: SECRET}, "body"),
        ("/recommend", {"query": SECRET}, "body"),
        ("/recommend", {FIELD: SECRET}, "body"),
        ("/recommend", {"limit": 0}, "body.limit"),
        ("/recommend", {"limit": -1}, "body.limit"),
        ("/recommend", {"limit": 1.0}, "body.limit"),
        ("/recommend", {"limit": "10"}, "body.limit"),
        ("/recommend", {"limit": True}, "body.limit"),
        ("/recommend", {"limit": 101}, "body.limit"),
        ("/recommend", {"limit": 10**400}, "body.limit"),
        ("/recommend", {"beam_width": 0}, "body.beam_width"),
        ("/recommend", {"beam_width": 100_000}, "body.beam_width"),
        ("/recommend", {"exclude_history": "yes"}, "body.exclude_history"),
        ("/recommend", {"history": {"item_id": "item-1"}}, "body.history"),
        ("/recommend", {"history": ["item-1"]}, "body.history.0"),
        ("/recommend", {"history": [{}]}, "body.history.0.item_id"),
        ("/recommend", {"history": [{"item_id": 1}]}, "body.history.0.item_id"),
        ("/recommend", {"history": [{"item_id": ""}]}, "body.history.0.item_id"),
        ("/recommend", {"history": [{"item_id": SECRET * 100}]}, "body.history.0.item_id"),
        ("/recommend", {"history": [{"item_id": "a", "behaviour": SECRET}]}, "body.history.0.behaviour"),
        ("/recommend", {"history": [{"item_id": "a", "behaviour": "search"}]}, "body.history"),
        ("/recommend", {"history": [{"item_id": "a", "behaviour": "search", "query": " "}]}, "body.history"),
        ("/recommend", {"history": [{f"{SECRET}{k}": 1 for k in range(100_000)}]}, "body.history"),
        ("/recommend", {"history": [{"item_id": "a", FIELD: SECRET}]}, "body.history.0"),
        ("/recommend", {"history": [{"item_id": "a"}] * 50_001}, "body.history"),
        ("/recommend", {"history": [SECRET] * 50_000}, "body.history.0"),
        ("/recommend", {f"{SECRET}{k}": 1 for k in range(100_000)}, "body"),
        ("/recommend", {"exclude": SECRET}, "body.exclude"),
        ("/recommend", {"exclude": [""]}, "body.exclude.0"),
        ("/recommend", {"exclude": ["a"] * 10_001}, "body.exclude"),
        ("/recommend", {"candidates": [""]}, "body.candidates.0"),
        ("/recommend", {"candidates": ["item-1", SECRET], "strict": True}, "body.candidates.1"),
        ("/recommend", {"exclude": ["item-1", SECRET], "strict": True}, "body.exclude.1"),
        ("/recommend", {"history": [{"item_id": SECRET}], "strict": True}, "body.history.0.item_id"),
        ("/recommend", {"candidates": ["a"] * 10_001}, "body.candidates"),
        ("/recommend", {"filter": [SECRET]}, "body.filter"),
        ("/recommend", {"filter": {SECRET: 1}}, "body.filter"),
        ("/recommend", {"filter": {SECRET: None}}, "body.filter"),
        ("/recommend", {"filter": {"year": []}}, "body.filter"),
        ("/recommend", {"filter": {"year": [[1]]}}, "body.filter"),
        ("/recommend", {"filter": {"year": {}}}, "body.filter"),
        ("/recommend", {"filter": {"year": {"gte": None}}}, "body.filter"),
        ("/recommend", {"filter": {"year": {"gte": SECRET}}}, "body.filter"),
        ("/recommend", {"filter": {"year": {SECRET: 1}}}, "body.filter"),
        ("/recommend", {"filter": {"year": {"gte": 10**400}}}, "body.filter"),
        ("/recommend", {"filter": {"year": {"gte": True}}}, "body.filter"),
        ("/recommend", {"filter": {"year": {f"{SECRET}{k}": 1 for k in range(100_000)}}}, "body.filter"),
        ("/recommend", {"filter": {"year": [SECRET * 100]}}, "body.filter"),
        ("/recommend", {"filter": {"year": 10**400}}, "body.filter"),
        ("/recommend", {"filter": {f"{SECRET}{k}": 1 for k in range(1000)}}, "body.filter"),
        ("/recommend", [], "body"),
        ("/recommend", None, "body"),
        ("/recommend", SECRET, "body"),
    ],
    ids=lambda value: str(value)[:40],
)
def test_wrong_shape_is_named_by_its_place(client: TestClient, path: str, body: object, where: str) -> None:
    problem = check_problem(client.post(path, content=json.dumps(body), headers=JSON), 422)
    assert problem["errors"][0]["where"] == where
    assert problem["errors"][0]["message"]


@pytest.mark.parametrize(
    "body",
    [
        b"",
        b"{",
        b'{"query": "s3cret-words"',
        b"{s3cret-words}",
        b'{"limit": NaN, "query": "s3cret-words"}',
        b'{"limit": Infinity}',
        b'{"limit": -Infinity}',
        b'{"query": "s3cret-words \\ud800"}',
        b'{"query": "\\udc00\\ud800"}',
        b'{"query": "\xff\xfe"}',
        b'{"query": "\xed\xa0\x80"}',
        b'\xef\xbb\xbf{"query": "a"}',
        b'{"query": "a"} s3cret-words',
        b"[" * 100_000,
        b'{"a":' * 100_000,
        b'{"limit": ' + b"9" * 10_000 + b"}",
        b"\x00",
    ],
    ids=lambda body: str(body[:30]),
)
def test_broken_json_is_400(client: TestClient, body: bytes) -> None:
    check_problem(client.post("/search", content=body, headers=JSON), 400)


@pytest.mark.parametrize(
    "media_type", [None, "text/plain", "application/x-www-form-urlencoded", "application/js"]
)
def test_other_media_type_is_415(client: TestClient, media_type: str | None) -> None:
    headers = {"content-type": media_type} if media_type else {}
    check_problem(client.post("/search", content=b'{"query": "a"}', headers=headers), 415)


def test_media_type_may_name_its_charset(client: TestClient) -> None:
    headers = {"content-type": "application/json; charset=utf-8"}
    assert client.post("/recommend", content=b"{}", headers=headers).status_code == 200


def test_large_body_is_413_whether_announced_or_not(make_client) -> None:
    client = make_client(max_body_bytes=1000)
    just = json.dumps({"query": "a"}).encode().ljust(1000)
    assert client.post("/search", content=just, headers=JSON).status_code == 200
    check_problem(client.post("/search", content=just + b" ", headers=JSON), 413)
    check_problem(client.post("/search", content=(just for _ in range(2)), headers=JSON), 413)
    check_problem(client.post("/search", content=b"", headers=JSON | {"content-length": "9" * 30}), 413)


def test_unknown_path_and_method(client: TestClient) -> None:
    check_problem(client.get(f"/{SECRET}"), 404)
    check_problem(client.post("/search/", json={"query": "a"}), 404)
    response = client.get("/search")
    check_problem(response, 405)
    assert response.headers["allow"] == "POST"
    check_problem(client.request(SECRET.upper(), "/recommend"), 405)


_JSON = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats(allow_nan=False) | st.text(max_size=20),
    lambda inner: st.lists(inner, max_size=4) | st.dictionaries(st.text(max_size=10), inner, max_size=4),
    max_leaves=10,
)
_FIELDS = st.sampled_from(["query", "history", "limit", "beam_width", "exclude_history", "item_id"])
_PATHS = st.sampled_from(["/search", "/recommend"])


@settings(max_examples=150, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(body=st.dictionaries(_FIELDS, _JSON, max_size=5) | _JSON, path=_PATHS)
def test_any_json_is_answered_or_refused(client: TestClient, body: object, path: str) -> None:
    content = json.dumps(body)
    response = client.post(path, content=content, headers=JSON)
    if response.status_code != 200:
        assert response.status_code in (400, 422)
        check_problem(response, response.status_code)


@settings(max_examples=100, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(body=st.binary(max_size=60))
def test_any_bytes_are_refused(client: TestClient, body: bytes) -> None:
    response = client.post("/search", content=body, headers=JSON)
    assert response.status_code in (400, 422)
    check_problem(response, response.status_code)


def test_a_wrong_condition_is_answered_with_one_reason(client: TestClient) -> None:
    response = client.post("/recommend", json={"filter": {"year": {"gte": "1990"}}})
    (error,) = check_problem(response, 422)["errors"]
    assert error["message"] == "the bounds of a range are numbers that a double can hold"


def test_an_unknown_attribute_is_answered_with_the_known_ones(client: TestClient) -> None:
    (error,) = check_problem(client.post("/recommend", json={"filter": {SECRET: 1}}), 422)["errors"]
    assert error["message"] == "no item has such an attribute; the attributes are: categories, year"


NAMES = st.text(min_size=1, max_size=200) | st.sampled_from(
    ["\\" * 100, '"' * 100, "\u202e" + "a" * 70, "\n\r\x1b[31m", "😀" * 80, "limıt"]
)


@settings(max_examples=150, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(names=st.lists(NAMES, min_size=1, max_size=8, unique=True))
def test_unknown_fields_are_named_in_printable_characters_and_nothing_else_is(
    client: TestClient, names: list[str]
) -> None:
    names = [name for name in names if name not in SearchRequest.model_fields]
    content = json.dumps(dict.fromkeys(names, SECRET)).encode("utf-8", "surrogatepass")
    response = client.post("/search", content=content, headers=JSON)
    if response.status_code == 400:  # a lone surrogate
        return
    errors = check_problem(response, 422)["errors"]
    for error in errors:
        if error["where"] == "body":
            shown = error["message"].removeprefix("unknown field '").rpartition("'; ")[0]
            shown = shown.partition("'; did you mean '")[0]
            assert shown.replace("…", "").isascii()
            assert shown.isprintable()
            assert len(shown) <= MAX_NAME_CHARS
    messages = " ".join(error["message"] for error in errors)
    for name in names[:4]:  # five errors are told, one of them is the missing query
        assert ascii(name[: MAX_NAME_CHARS + 1])[1:-1][:50] in messages


@pytest.mark.parametrize("field", [*SearchRequest.model_fields, *HistoryEntry.model_fields])
def test_a_misspelt_field_is_told_its_name(client: TestClient, field: str) -> None:
    wrong = field[0] + field[2:]  # one letter is missing
    entry = {"item_id": "item-1", wrong: SECRET}
    for body in ({wrong: SECRET}, {"history": [entry]}):
        (error,) = check_problem(client.post("/recommend", json=body), 422)["errors"]
        assert error["message"] == f"unknown field '{wrong}'; did you mean '{field}'?"


def test_a_field_of_another_endpoint_is_named_without_a_guess(client: TestClient) -> None:
    (error,) = check_problem(client.post("/recommend", json={"query": SECRET}), 422)["errors"]
    assert error["message"] == "unknown field 'query'; see /docs"
    response = client.post("/batch", json={"requests": [{"task": "recommendation", "limt": 5}]})
    (error,) = check_problem(response, 422)["errors"]
    assert error["where"] == "body.requests.0.recommendation"
    assert error["message"] == "unknown field 'limt'; did you mean 'limit'?"


def test_a_strict_request_names_the_places_of_the_first_unknown_items(client: TestClient) -> None:
    body = {
        "strict": True,
        "history": [{"item_id": "item-1"}, {"item_id": SECRET}],
        "exclude": [SECRET, "item-2"],
        "candidates": ["item-3", *[f"{SECRET}-{k}" for k in range(9000)]],
    }
    errors = check_problem(client.post("/recommend", json=body), 422)["errors"]
    assert [error["where"] for error in errors] == [
        *("body.history.1.item_id", "body.exclude.0"),
        *("body.candidates.1", "body.candidates.2", "body.candidates.3"),
    ]
    assert {error["message"] for error in errors} == {"the catalogue holds no such item"}
