"""People on a server as in production: kills, a store that is gone, several servers, and what forgetting leaves."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import threading
from pathlib import Path
from typing import Any

import httpx
import pytest
from starlette.testclient import TestClient
from support.engines import hosted
from support.paths import ROOT
from support.servers import Server, wait_until

from index.bundle.bundle import Bundle
from server.app import create_app
from server.engine.options import EngineOptions
from server.engine.torch_backend.engine import TorchEngine
from server.people import people, sqlite_rows
from server.settings import Settings

HISTORY = [f"item-{k}" for k in range(3, 15)]


def body(user: str, items: list[str] = HISTORY, query: str | None = None) -> dict[str, Any]:
    """The body of a request that sends events; each is a search if there is a query."""
    more = {} if query is None else {"behaviour": "search", "query": query}
    return {
        "events": [
            {"event_id": f"{user}-{k}", "user_id": user, "item_id": item, "timestamp": 1000 + k, **more}
            for k, item in enumerate(items)
        ]
    }


def test_a_server_that_is_killed_remembers_what_it_acknowledged(tiny_bundle: Path, tmp_path: Path) -> None:
    settings = {"GEMS_PEOPLE_STORE": str(tmp_path / "people.db"), "GEMS_CACHE_MIB": "0"}
    with Server(tiny_bundle, **settings) as server, httpx.Client(base_url=server.url) as client:
        for k in range(20):
            assert client.post("/v1/events", json=body(f"u{k}")).status_code == 200
        os.kill(server.process.pid, signal.SIGKILL)
        server.process.wait()
    with Server(tiny_bundle, **settings) as server, httpx.Client(base_url=server.url) as client:
        for k in range(20):
            kept = client.get(f"/v1/users/u{k}").json()["events"]
            assert [each["item_id"] for each in kept] == HISTORY
        inline = client.post("/recommend", json={"history": [{"item_id": item} for item in HISTORY]}).json()
        stored = client.post("/recommend", json={"user_id": "u7"}).json()
        assert stored["items"] == inline["items"]


def test_two_servers_share_a_store_and_forget_together(tiny_bundle: Path, tmp_path: Path) -> None:
    """Forgetting empties the prefix caches of both, whoever was asked; no log and no file holds the person."""
    settings = {"GEMS_PEOPLE_STORE": str(tmp_path / "people.db"), "GEMS_LOG_LEVEL": "debug"}
    with (
        Server(tiny_bundle, **settings) as one,
        Server(tiny_bundle, **settings) as two,
        httpx.Client(base_url=one.url) as first,
        httpx.Client(base_url=two.url) as second,
    ):
        sent = body("the-person", query="never-to-be-seen")
        assert first.post("/v1/events", json=sent).json()["stored"] == len(HISTORY)
        assert second.post("/v1/events", json=sent).json()["duplicates"] == len(HISTORY)
        inline = [
            {k: v for k, v in each.items() if k in ("item_id", "behaviour", "query")}
            for each in sent["events"]
        ]

        def cached(client: httpx.Client) -> int:
            return int(client.post("/recommend", json={"history": inline}).json()["cached_tokens"])

        for client in (first, second):
            answer = client.post("/recommend", json={"user_id": "the-person"}).json()
            assert answer["stored_events"] == len(HISTORY)
            assert cached(client) > 0
        assert first.delete("/v1/users/the-person").json()["events"] == len(HISTORY)
        assert cached(first) == 0
        wait_until(lambda: cached(second) == 0)
        for client in (first, second):
            assert client.get("/v1/users/the-person").status_code == 404
        paths = {line.get("path") for line in [*one.lines, *two.lines]}
        assert "/v1/users/{user_id}" in paths
        said = json.dumps([one.lines, two.lines]) + first.get("/metrics").text
        held = b"".join(each.read_bytes() for each in tmp_path.iterdir())
        for mark in ("the-person", "never-to-be-seen"):
            assert mark not in said
            assert mark.encode() not in held


def test_a_store_that_is_gone_costs_the_history_and_not_the_answer(
    make_client: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(people, "PAUSE_SECONDS", 0.2)
    path = tmp_path / "people.db"
    client = make_client(people_store=str(path))
    client.post("/v1/events", json=body("u"))
    known = client.post("/recommend", json={"user_id": "u"}).json()
    os.rename(path, tmp_path / "away")
    for _ in range(3):
        answer = client.post("/recommend", json={"user_id": "u", "history": [{"item_id": "item-1"}]})
        assert answer.status_code == 200
        assert (answer.json()["stored_history"], answer.json()["stored_events"]) == ("unavailable", 0)
        inline = client.post("/recommend", json={"history": [{"item_id": "item-1"}]}).json()
        assert answer.json()["items"] == inline["items"]
    popular = client.post("/recommend", json={"user_id": "u", "fallback": "popularity"}).json()
    assert (popular["fallback"], popular["stored_history"]) == ("cold_start", "unavailable")
    for method, target in (("POST", "/events"), ("GET", "/users/u"), ("DELETE", "/users/u")):
        response = client.request(method, target, json=body("u") if method == "POST" else None)
        assert response.status_code == 503
        assert response.json()["type"] == "urn:gems:problem:store_unavailable"
        assert response.headers["retry-after"] == "1"
    metrics = client.get("/metrics").text
    assert 'gems_store_failures_total{operation="write"} 1.0' in metrics
    assert 'gems_store_failures_total{operation="read"} 5.0' in metrics
    assert client.get("/health/ready").status_code == 200
    os.rename(tmp_path / "away", path)
    wait_until(lambda: client.post("/recommend", json={"user_id": "u"}).json()["stored_history"] == "read")
    assert client.post("/recommend", json={"user_id": "u"}).json()["items"] == known["items"]
    assert client.post("/v1/events", json=body("u")).json()["duplicates"] == len(HISTORY)


def test_a_store_that_hangs_does_not_hold_an_answer(
    make_client: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    client = make_client(people_store=str(tmp_path / "people.db"))
    client.post("/v1/events", json=body("u"))
    released = threading.Event()
    asked: list[Any] = []
    monkeypatch.setattr(sqlite_rows, "history", lambda *each: (asked.append(each), released.wait(20)))
    monkeypatch.setattr(people, "READ_SECONDS", 0.1)
    monkeypatch.setattr(people, "PAUSE_SECONDS", 20)
    for _ in range(people.FAILURES + 2):
        answer = client.post("/recommend", json={"user_id": "u"}).json()
        assert answer["stored_history"] == "unavailable"
        assert len(answer["items"]) == 10
    assert (
        client.post("/recommend", json={"user_id": "u"}).json()["timings_ms"]["history"] < 100
    )  # not even asked
    released.set()


def test_forgetting_empties_what_the_server_keeps_in_memory(tmp_path: Path, bundle: Bundle) -> None:
    own = Bundle.open(bundle.path)
    engine = TorchEngine.open(own, EngineOptions(cache_bytes=1 << 26))
    settings = Settings(people_store=str(tmp_path / "people.db"), request_timeout_ms=400)
    with TestClient(create_app(own, hosted(engine), settings)) as client:
        client.post("/v1/events", json=body("u", query="golden voyage"))
        client.post("/search", json={"user_id": "u", "query": "river"})
        kept = own.encoder._encode.cache_info
        assert len(engine.cache) > 0 < kept().currsize
        client.delete("/v1/users/u")
        assert len(engine.cache) == kept().currsize == 0
        client.post("/recommend", json={"history": [{"item_id": item} for item in HISTORY]})
        assert len(engine.cache) > 0  # a request that had read the history before
        wait_until(lambda: len(engine.cache) == 0, 5)


@pytest.mark.parametrize(
    ("settings", "said"),
    [
        ({"GEMS_PEOPLE_STORE": __file__}, "is not a store of people, nor any database"),
        ({"GEMS_PEOPLE_STORE": "nowhere/people.db"}, "cannot be made: No such file or directory"),
        (
            {"GEMS_PEOPLE_STORE": "people.db", "GEMS_CORS_ORIGINS": "https://shop.example"},
            "GEMS_PEOPLE_STORE does not go with GEMS_CORS_ORIGINS",
        ),
        ({"GEMS_PEOPLE_EVENTS": "0"}, "setting people_events"),
        ({"GEMS_PEOPLE_DAYS": "-1"}, "setting people_days"),
    ],
    ids=str,
)
def test_what_cannot_be_used_is_refused_at_the_start(
    tiny_bundle: Path, tmp_path: Path, settings: dict[str, str], said: str
) -> None:
    done = subprocess.run(
        [sys.executable, "-m", "server", str(tiny_bundle), "--port", "0"],
        env=os.environ | {"PYTHONPATH": str(ROOT)} | settings,
        cwd=tmp_path,
        capture_output=True,
        text=True,
    )
    assert done.returncode == 2
    (line,) = done.stderr.splitlines()
    assert line.startswith("error: ")
    assert said in line
    assert not list(tmp_path.iterdir())
