"""The application while its engine is busy or failing."""

from __future__ import annotations

import asyncio
import json
import time
from concurrent.futures import ThreadPoolExecutor
from typing import Any

from support.engines import FailingEngine, GatedEngine, hosted
from support.servers import wait_until

from index.bundle.bundle import Bundle
from server.app import create_app
from server.engine.torch_backend.engine import TorchEngine
from server.settings import Settings


def test_full_queue_is_429_and_health_answers_while_the_engine_computes(
    make_client, engine: TorchEngine
) -> None:
    gated = GatedEngine(engine)
    client = make_client(gated, queue_limit=2, max_batch_size=1)
    gated.hold()
    with ThreadPoolExecutor(3) as threads:
        busy = [threads.submit(client.post, "/recommend", json={})]
        wait_until(gated.entered.is_set)
        busy += [threads.submit(client.post, "/search", json={"query": "a"}) for _ in range(2)]
        wait_until(lambda: "gems_queue_depth 2.0" in client.get("/metrics").text)
        began = time.perf_counter()
        refused = client.post("/recommend", json={})
        healths = [client.get(path).status_code for path in ("/health/live", "/health/ready", "/info")]
        seconds = time.perf_counter() - began
        gated.gate.set()
        answers = [each.result().status_code for each in busy]
    assert refused.status_code == 429
    assert int(refused.headers["retry-after"]) >= 1
    assert refused.json()["type"] == "urn:gems:problem:queue_full"
    assert healths == [200, 200, 200]
    assert seconds < 1
    assert answers == [200, 200, 200]
    assert 'gems_rejected_total{reason="queue_full"} 1.0' in client.get("/metrics").text


def test_deadline_is_504(make_client, engine: TorchEngine) -> None:
    gated = GatedEngine(engine)
    client = make_client(gated, request_timeout_ms=50)
    gated.hold()
    response = client.post("/recommend", json={})
    gated.gate.set()
    assert response.status_code == 504
    assert response.json()["type"] == "urn:gems:problem:deadline_exceeded"


def test_engine_failure_is_500_without_a_reason_and_the_next_request_is_answered(
    make_client, engine: TorchEngine
) -> None:
    client = make_client(FailingEngine(engine, limit=13))
    response = client.post("/recommend", json={"limit": 13})
    assert response.status_code == 500
    assert "told to fail" not in response.text
    assert response.headers["content-type"] == "application/problem+json"
    assert client.post("/recommend", json={"limit": 12}).status_code == 200
    assert "gems_engine_failures_total 1.0" in client.get("/metrics").text


def test_fault_of_the_server_is_500_without_a_traceback(
    make_client, bundle: Bundle, monkeypatch, caplog
) -> None:
    client = make_client()

    def broken(*_: object) -> None:
        raise RuntimeError("secret words of a query")

    monkeypatch.setattr(type(bundle.encoder), "prompt", broken)
    response = client.post("/search", json={"query": "secret words of a query"})
    assert response.status_code == 500
    assert response.json()["type"] == "urn:gems:problem:unexpected"
    assert "secret" not in response.text
    assert response.json()["request_id"] in [getattr(record, "request_id", "") for record in caplog.records]


def test_client_that_hangs_up_is_dropped_before_ranking(bundle: Bundle, engine: TorchEngine) -> None:
    gated = GatedEngine(engine)
    app = create_app(bundle, hosted(gated), Settings())

    async def post(body: dict[str, Any], hang_up: asyncio.Event) -> list[dict[str, Any]]:
        """One request straight into the ASGI application; the client is there until `hang_up`."""
        messages = [{"type": "http.request", "body": json.dumps(body).encode(), "more_body": False}]
        sent: list[dict[str, Any]] = []

        async def receive() -> dict[str, Any]:
            if messages:
                return messages.pop()
            await hang_up.wait()
            return {"type": "http.disconnect"}

        async def send(message: dict[str, Any]) -> None:
            sent.append(message)

        headers = [(b"content-type", b"application/json")]
        scope = {
            "type": "http",
            "method": "POST",
            "path": "/recommend",
            "headers": headers,
            "query_string": b"",
        }
        await app(scope, receive, send)
        return sent

    async def main() -> list[list[dict[str, Any]]]:
        async with app.router.lifespan_context(app):
            gated.hold()
            gone = asyncio.Event()
            first = asyncio.create_task(post({"limit": 1}, asyncio.Event()))
            await asyncio.to_thread(gated.entered.wait, 10)
            second = asyncio.create_task(post({"limit": 2}, gone))
            third = asyncio.create_task(post({"limit": 3}, asyncio.Event()))
            await asyncio.sleep(0.05)
            gone.set()
            await second
            gated.gate.set()
            return await asyncio.gather(first, second, third)

    sent = asyncio.run(main())
    assert [messages[0]["status"] for messages in sent] == [200, 499, 200]
    ranked = [[each.limit for each in batch] for batch in gated.batches[1:]]  # the first is the warm-up
    assert ranked == [[1], [3]]
