"""Paths for operators: monitors ask with HEAD, and get the head of what GET would answer."""

from __future__ import annotations

import pytest
from starlette.testclient import TestClient

from server.api.paths import ADMINISTRATION, EVENTS, NAMED, RANKING, VERSION


def test_head_is_answered_like_get_everywhere(client: TestClient) -> None:
    for path in NAMED - {*RANKING, *ADMINISTRATION, EVENTS, VERSION + EVENTS}:
        check_head(client, f"{path}?prefix=a" if path.endswith("/items") else path)


@pytest.mark.parametrize(
    "path", ["/", "/info", "/items", "/v1/items", "/search", "/v1/batch", "/health/live"]
)
def test_a_wrong_method_is_told_all_right_ones(client: TestClient, path: str) -> None:
    assert client.delete(path).headers["allow"] == ("POST" if path in RANKING else "GET, HEAD")


def check_head(client: TestClient, path: str) -> None:
    get, head = client.get(path), client.head(path)
    assert (head.status_code, head.headers["content-type"]) == (get.status_code, get.headers["content-type"])
    assert get.status_code == 200


def test_head_is_no_way_around_a_refusal(make_client) -> None:
    """A server that is not ready says so to HEAD, too, and rankings have no HEAD."""
    client = make_client()
    client.app.state.readiness.stage = "draining"
    assert client.head("/health/ready").status_code == client.get("/health/ready").status_code == 503
    assert client.head("/recommend").status_code == 405


def test_head_is_not_listed_twice_in_the_document(client: TestClient) -> None:
    paths = client.get("/openapi.json").json()["paths"]
    assert all("head" not in methods for methods in paths.values())


@pytest.mark.parametrize("name", ["a", "0f9d4b0c-6f0e", "trace.1_2-3", "x" * 64])
def test_the_name_that_a_client_gives_its_request_is_kept(client: TestClient, name: str) -> None:
    answer = client.post("/recommend", json={"limit": 1}, headers={"X-Request-ID": name})
    assert answer.headers["X-Request-ID"] == answer.json()["request_id"] == name
    problem = client.post("/recommend", json={"limit": 0}, headers={"X-Request-ID": name})
    assert problem.headers["X-Request-ID"] == problem.json()["request_id"] == name


@pytest.mark.parametrize("name", ["", " ", "x" * 65, "a b", 'a"b', "a,b", "<script>", "ä".encode("latin-1")])
def test_a_name_that_could_harm_a_log_is_replaced(client: TestClient, name: str | bytes) -> None:
    answer = client.post("/recommend", json={"limit": 1}, headers={"X-Request-ID": name})
    assert len(answer.headers["X-Request-ID"]) == 32
    assert answer.json()["request_id"] == answer.headers["X-Request-ID"]
