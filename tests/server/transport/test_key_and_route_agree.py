"""A path that a route would take is the path that the key check sees, whatever is appended to it."""

from __future__ import annotations

from collections.abc import Callable
from urllib.parse import quote

import pytest
from starlette.testclient import TestClient

from server.api.paths import EVENTS, LOOKUP, RANKING, USERS, VERSION

GUARDED = [
    *(("POST", path) for path in (*RANKING, EVENTS, VERSION + EVENTS)),
    *(("GET", path) for path in (LOOKUP, VERSION + LOOKUP)),
    *((method, f"{path}u1") for method in ("GET", "HEAD", "DELETE") for path in (USERS, VERSION + USERS)),
]
TAILS = ["\n", "\r", "\r\n", "\x00", "\t", "\x0b", "\x7f", "\x85", "\u2028", " ", "/", "//", "/.", ";x"]


@pytest.mark.parametrize("prefix", ["", "/gems"])
@pytest.mark.parametrize(("method", "path"), GUARDED)
def test_nothing_that_is_appended_to_a_path_leads_past_the_keys(
    method: str, path: str, prefix: str, make_client: Callable[..., TestClient]
) -> None:
    client = make_client(api_keys="key", root_path="/gems")
    for tail in TAILS:
        answer = client.request(
            method, f"{prefix}{path}{quote(tail, safe='/')}", json={"query": "river", "requests": []}
        )
        assert answer.status_code in (307, 401, 404, 405), (path, tail)
