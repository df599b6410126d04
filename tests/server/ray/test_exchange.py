"""A request that travels as values is answered as over a socket, and is cancelled as by a disconnect."""

from __future__ import annotations

import asyncio
import json
import pickle
from collections.abc import Callable
from typing import Any

import pytest
from fastapi import Request
from starlette.testclient import TestClient
from support.engines import GatedEngine

from server.engine.torch_backend.engine import TorchEngine
from server.ray.exchange import REPLICA, Answered, Sent, ask

HISTORY = [{"item_id": "item-3"}, {"item_id": "item-8", "behaviour": "search", "query": "river"}]
VOLATILE = ("request_id", "timings_ms", "cached_tokens")


def sent(
    method: str, path: str, body: bytes = b"", *headers: tuple[bytes, bytes], query: bytes = b""
) -> Sent:
    kind = [(b"content-type", b"application/json"), (b"content-length", str(len(body)).encode())]
    return Sent(method, path, path.encode(), query, [*kind, *headers], ("192.0.2.1", 4711), body)


def stable(content: bytes) -> Any:
    read = json.loads(content)
    return {name: value for name, value in read.items() if name not in VOLATILE}


@pytest.mark.parametrize(
    ("method", "path", "body"),
    [
        ("POST", "/v1/recommend", json.dumps({"history": HISTORY, "limit": 5}).encode()),
        ("POST", "/search", json.dumps({"history": HISTORY, "query": "golden river"}).encode()),
        ("POST", "/search", json.dumps({"query": "golden river", "limit": 0}).encode()),
        ("POST", "/recommend", b"{"),
        ("POST", "/nowhere", b"{}"),
        ("GET", "/recommend", b""),
        ("GET", "/info", b""),
    ],
)
def test_an_answer_is_that_of_a_client(client: TestClient, method: str, path: str, body: bytes) -> None:
    direct = client.request(method, path, content=body, headers={"Content-Type": "application/json"})
    travelled = pickle.loads(pickle.dumps(sent(method, path, body)))  # noqa: S301 (as between Ray's processes)
    # The application runs on the loop of its client's thread.
    assert client.portal is not None
    answer = client.portal.call(ask, client.app, travelled)
    assert answer.status == direct.status_code
    assert stable(answer.body) == stable(direct.content)
    headers = {name.decode(): value.decode() for name, value in answer.headers}
    assert headers.keys() == direct.headers.keys()
    assert headers["content-type"] == direct.headers["content-type"]


def test_whoever_stops_waiting_cancels_the_request(
    make_client: Callable[..., TestClient], engine: TorchEngine
) -> None:
    gated = GatedEngine(engine)
    client = make_client(gated, max_batch_size=1)
    gated.hold()

    async def give_up() -> None:
        task = asyncio.create_task(ask(client.app, sent("POST", "/recommend", b"{}")))
        await asyncio.to_thread(gated.entered.wait, 20)
        task.cancel()
        with pytest.raises(asyncio.CancelledError):
            await task

    assert client.portal is not None
    client.portal.call(give_up)
    gated.gate.set()
    scraped = client.get("/metrics").text
    assert 'gems_requests_total{outcome="cancelled",task="recommendation"} 1.0' in scraped


def test_the_query_and_a_decoded_path_arrive() -> None:
    scope = {
        "type": "http",
        "method": "GET",
        "path": "/v1/users/ü",
        "raw_path": b"/v1/users/%C3%BC",
        "query_string": b"a=1",
        "headers": [(b"x-request-id", b"r-1")],
        "client": None,
    }
    there = Sent.of(Request(scope), b"").scope
    assert {name: there[name] for name in scope} == scope


def test_the_id_of_the_request_is_left_to_the_proxy_and_the_rest_stays() -> None:
    headers = [(b"X-Request-ID", b"r-1"), (REPLICA, b"abc"), (b"allow", b"GET"), (b"allow", b"HEAD")]
    response = Answered(405, headers, b"no").response()
    assert response.status_code == 405
    assert response.body == b"no"
    assert response.raw_headers == headers[1:]
