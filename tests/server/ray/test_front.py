"""A front whose replicas are lost, full or silent: every request gets an answer that a client understands.

The replicas are the real application behind a stand-in for Ray's handle, which fails as Ray's does.
"""

from __future__ import annotations

import asyncio
import json
from collections.abc import Callable
from dataclasses import replace
from itertools import cycle
from types import SimpleNamespace
from typing import Any

import pytest
from starlette.requests import Request
from starlette.responses import Response
from starlette.testclient import TestClient

pytest.importorskip("ray", reason="no Ray: pip install 'gems-sr[ray]'")

from ray.exceptions import ActorDiedError
from ray.serve.exceptions import BackPressureError, DeploymentUnavailableError

from server.ray.exchange import REPLICA, Answered, Sent, ask
from server.ray.front import Front
from server.settings import Settings

LOST = ActorDiedError()
FULL = BackPressureError(num_queued_requests=3, max_queued_requests=3)


class Asked(asyncio.Future[Any]):
    """A response of Ray's that is not there yet. cancelled_by_front: whether the front gave it up."""

    cancelled_by_front = False

    def cancel(self, msg: Any = None) -> bool:
        self.cancelled_by_front = True
        return super().cancel()


class Handle:
    """Stand-in for a handle: each of `replicas` answers by the application, fails, or is silent if it is None."""

    def __init__(self, client: TestClient, *replicas: str | BaseException | None) -> None:
        self._client = client
        self._replicas = replicas
        self.sessions: list[str] = []
        self.asked: list[Asked] = []
        turns = cycle(replicas)  # as Ray spreads requests of nobody
        self.answer = SimpleNamespace(remote=lambda sent: self._asked(sent, next(turns, LOST)))

    def options(self, *, session_id: str) -> Handle:
        self.sessions.append(session_id)
        return self

    def broadcast(self, method: str, sent: Sent) -> Any:
        assert method == "answer"

        async def results(timeout_s: float, return_exceptions: bool) -> list[Any]:
            if not self._replicas:
                raise DeploymentUnavailableError(SimpleNamespace(name="Replica", app_name="gems"))
            asked = [self._asked(sent, each) for each in self._replicas]
            together = asyncio.gather(*asked, return_exceptions=return_exceptions)
            return await asyncio.wait_for(together, timeout_s)

        return SimpleNamespace(results_async=results)

    def _asked(self, sent: Sent, replica: str | BaseException | None) -> Asked:
        asked = Asked()
        self.asked.append(asked)
        if isinstance(replica, BaseException):
            asked.set_exception(replica)
        elif replica is not None:
            assert self._client.portal is not None
            answered: Answered = self._client.portal.call(ask, self._client.app, sent)
            asked.set_result(replace(answered, headers=[*answered.headers, (REPLICA, replica.encode())]))
        return asked


def asked(handle: Handle, path: str, body: bytes = b"", method: str = "POST", **settings: Any) -> Response:
    async def receive() -> dict[str, Any]:
        return {"type": "http.request", "body": body, "more_body": False}

    headers = [(b"content-type", b"application/json"), (b"x-request-id", b"r-1")]
    scope = {"type": "http", "method": method, "path": path, "query_string": b"", "headers": headers}

    async def ask_front() -> Response:
        return await Front(handle, Settings(**settings))(Request(scope, receive))

    return asyncio.run(ask_front())


def problem(response: Response) -> tuple[int, str]:
    read = json.loads(bytes(response.body))
    assert read["request_id"] == "r-1"
    return response.status_code, read["type"].rpartition(":")[2]


def test_a_request_goes_to_the_replica_of_its_person(client: TestClient) -> None:
    handle = Handle(client, "one")
    body = b'{"history": [{"item_id": "item-1"}]}'
    assert asked(handle, "/recommend", body).headers["x-replica"] == "one"
    assert asked(handle, "/search", b'{"query": "river", ' + body[1:]).status_code == 200
    assert asked(handle, "/recommend", b"{}").status_code == 200
    assert len(handle.sessions) == 2  # nobody's request has no session
    assert len(set(handle.sessions)) == 1


@pytest.mark.parametrize(
    ("failure", "expected"),
    [
        (LOST, (503, "engine_unavailable")),
        (FULL, (429, "queue_full")),
        (None, (504, "deadline_exceeded")),
    ],
)
def test_a_failure_is_a_problem(
    client: TestClient, failure: Any, expected: tuple[int, str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("server.ray.front.GRACE_SECONDS", 0.05)
    handle = Handle(client, failure)
    response = asked(handle, "/recommend", b"{}", request_timeout_ms=50)
    assert problem(response) == expected
    assert ("retry-after" in response.headers) == (expected[0] != 504)
    assert handle.asked[0].cancelled_by_front == (failure is None)  # it does not go on for nobody


def test_whoever_disconnects_cancels_the_request(client: TestClient) -> None:
    handle = Handle(client, None)

    async def disconnect() -> None:
        async def receive() -> dict[str, Any]:
            return {"type": "http.request", "body": b"{}", "more_body": False}

        scope = {"type": "http", "method": "POST", "path": "/recommend", "query_string": b"", "headers": []}
        working = asyncio.create_task(Front(handle, Settings())(Request(scope, receive)))
        await asyncio.sleep(0.05)
        working.cancel()
        with pytest.raises(asyncio.CancelledError):
            await working

    asyncio.run(disconnect())
    assert handle.asked[0].cancelled_by_front


@pytest.mark.parametrize("path", ["/health/ready", "/health/live", "/metrics"])
def test_a_lost_replica_does_not_hide_the_others(client: TestClient, path: str) -> None:
    response = asked(Handle(client, LOST, "two"), path, method="GET")
    assert response.status_code == 200
    assert problem(asked(Handle(client, LOST), path, method="GET")) == (503, "not_ready")
    assert problem(asked(Handle(client), path, method="GET")) == (503, "not_ready")


def test_a_replica_that_hangs_does_not_make_the_fleet_unready(
    client: TestClient, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("server.ray.front.HEALTH_SECONDS", 0.05)
    monkeypatch.setattr("server.ray.front.ONE_SECONDS", 0.2)
    handle = Handle(client, None, "two")
    response = asked(handle, "/health/ready", method="GET")
    assert (response.status_code, response.headers["x-replica"]) == (200, "two")
    assert all(each.cancelled_by_front for each in handle.asked if not each.done())
    assert problem(asked(Handle(client, None, None), "/health/ready", method="GET")) == (503, "not_ready")


def test_metrics_name_their_replica(client: TestClient) -> None:
    text = bytes(asked(Handle(client, "one", "two"), "/metrics", method="GET").body).decode()
    assert 'gems_ready{replica="one"} 1.0' in text
    assert 'gems_ready{replica="two"} 1.0' in text
    head = asked(Handle(client, "one"), "/metrics", method="HEAD")
    assert head.body == b""
    assert int(head.headers["content-length"]) > 1000


def test_an_administrator_gets_the_worst_answer(make_client: Callable[..., TestClient]) -> None:
    client = make_client(admin_key="k")
    handle = Handle(client, "one", "two")
    assert problem(asked(handle, "/admin/index/refresh")) == (401, "unauthorized")
    assert len(handle.asked) == 2


def test_a_draining_front_is_not_ready_but_answers(client: TestClient) -> None:
    handle = Handle(client, "one")
    front = Front(handle, Settings())

    async def look(path: str, method: str) -> int:
        async def receive() -> dict[str, Any]:
            return {"type": "http.request", "body": b"{}", "more_body": False}

        headers = [(b"content-type", b"application/json")]
        scope = {"type": "http", "method": method, "path": path, "query_string": b"", "headers": headers}
        response = await front(Request(scope, receive))
        return response.status_code

    async def drained() -> list[int]:
        await front.drain()
        return [
            await look("/health/ready", "GET"),
            await look("/health/live", "GET"),
            await look("/recommend", "POST"),
        ]

    assert asyncio.run(drained()) == [503, 200, 200]
