"""API keys of the ranking endpoints, and web pages of other origins."""

from __future__ import annotations

import pytest
from pydantic import ValidationError

KEYS = {"api_keys": "first, zweiter-schlüssel ,"}


@pytest.mark.parametrize(
    ("header", "status"),
    [
        ({}, 401),
        ({"authorization": "Bearer "}, 401),
        ({"authorization": "Bearer wrong"}, 401),
        ({"authorization": "Bearer first, zweiter-schlüssel".encode()}, 401),
        ({"authorization": "Basic first"}, 401),
        ({"authorization": "Bearer first"}, 200),
        ({"authorization": "bearer first"}, 200),
        ({"authorization": "Bearer zweiter-schlüssel".encode()}, 200),
    ],
)
def test_rankings_ask_for_a_key_where_there_are_some(
    make_client, header: dict[str, str], status: int
) -> None:
    client = make_client(**KEYS)
    for path, body in (
        ("/recommend", {}),
        ("/v1/search", {"query": "a"}),
        ("/v1/batch", {"requests": [{"task": "recommendation"}]}),
    ):
        response = client.post(path, json=body, headers=header)
        assert response.status_code == status
        if status == 401:
            assert response.json()["type"] == "urn:gems:problem:unauthorized"
            assert response.headers["www-authenticate"] == "Bearer"
            assert response.headers["x-request-id"] == response.json()["request_id"]


def test_a_wrong_key_is_refused_before_the_body_is_looked_at(make_client) -> None:
    client = make_client(**KEYS)
    response = client.post("/recommend", content=b"{", headers={"authorization": "Bearer wrong"})
    assert response.status_code == 401
    assert 'gems_rejected_total{reason="unauthorized"} 1.0' in client.get("/metrics").text


def test_operations_need_no_key(make_client) -> None:
    client = make_client(**KEYS)
    for path in ("/health/live", "/health/ready", "/metrics", "/info", "/docs", "/openapi.json"):
        assert client.get(path).status_code == 200


def test_a_setting_of_commas_opens_no_server(make_client) -> None:
    """It was meant to hold keys: a server without any would be open to everybody."""
    with pytest.raises(ValidationError, match="GEMS_API_KEYS is set but holds nothing"):
        make_client(api_keys=" , ")


def test_pages_of_named_origins_may_ask(make_client) -> None:
    client = make_client(cors_origins="https://shop.example, https://other.example", **KEYS)
    preflight = {"access-control-request-method": "POST", "access-control-request-headers": "authorization"}
    for origin, allowed in (("https://shop.example", True), ("https://else.example", False)):
        asked = client.options("/v1/search", headers=preflight | {"origin": origin})
        assert (asked.headers.get("access-control-allow-origin") == origin) is allowed
        refused = client.post("/v1/search", headers={"origin": origin})  # without a key
        assert refused.status_code == 401
        assert (refused.headers.get("access-control-allow-origin") == origin) is allowed


def test_without_the_setting_no_page_may_ask(make_client) -> None:
    response = make_client().get("/info", headers={"origin": "https://shop.example"})
    assert "access-control-allow-origin" not in response.headers
