"""One replica on a real Ray: the answers of a server alone, its metrics, and a clean end."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import httpx
import pytest
from starlette.testclient import TestClient
from support.servers import wait_until

pytest.importorskip("ray", reason="no Ray: pip install 'gems-sr[ray]'")

from support.fleets import FleetProcess, count, history, living, stable

ADMIN_KEY = "the-key"


@pytest.fixture(scope="module")
def fleet(tiny_bundle: Path) -> Iterator[FleetProcess]:
    settings = {"GEMS_ADMIN_KEY": ADMIN_KEY, "GEMS_MAX_BODY_BYTES": "5000", "GEMS_DRAIN_SECONDS": "3"}
    with FleetProcess(tiny_bundle, "--fronts", "1", **settings) as started:
        yield started


@pytest.mark.parametrize(
    ("method", "path", "body"),
    [
        ("POST", "/v1/recommend", {"history": history(3, 9), "limit": 5}),
        ("POST", "/search", {"history": history(3, 9), "query": "golden river", "explain": True}),
        ("POST", "/search", {"query": "", "limit": 0}),
        ("POST", "/batch", {"requests": [{"task": "search", "query": "voyage"}, {"task": "recommendation"}]}),
        ("GET", "/items?prefix=gold", None),
        ("GET", "/nowhere", None),
        ("GET", "/recommend", None),
    ],
)
def test_answers_are_those_of_one_server(
    fleet: FleetProcess, client: TestClient, method: str, path: str, body: Any
) -> None:
    many = httpx.request(method, fleet.url + path, json=body, timeout=20)
    one = client.request(method, path, json=body)
    assert many.status_code == one.status_code
    assert stable(many.json()) == stable(one.json())
    assert many.headers["content-type"] == one.headers["content-type"]
    assert many.headers["x-request-id"] == many.json().get("request_id", many.headers["x-request-id"])
    assert many.headers.get("allow") == one.headers.get("allow")


def test_a_refresh_needs_the_key(fleet: FleetProcess) -> None:
    address = f"{fleet.url}/admin/index/refresh"
    assert httpx.post(address).status_code == 401
    response = httpx.post(address, headers={"Authorization": f"Bearer {ADMIN_KEY}"}, timeout=60)
    assert response.json()["previous_version"] == "v1"


def test_a_large_body_is_refused_by_the_front(fleet: FleetProcess) -> None:
    response = httpx.post(f"{fleet.url}/recommend", json={"history": history(1, 1000)})
    assert response.status_code == 413
    assert response.json()["type"] == "urn:gems:problem:body_too_large"
    assert response.json()["request_id"] == response.headers["x-request-id"]


def test_metrics_count_what_was_answered(fleet: FleetProcess) -> None:
    before = count(fleet, "gems_requests_total")
    replica = httpx.post(f"{fleet.url}/recommend", json={}, timeout=20).headers["x-replica"]
    assert count(fleet, "gems_requests_total") == {replica: before[replica] + 1}


def test_the_end_is_announced_and_leaves_nothing(fleet: FleetProcess) -> None:
    assert httpx.get(f"{fleet.url}/health/ready").status_code == 200
    family = fleet.family
    fleet.process.terminate()
    wait_until(lambda: httpx.get(f"{fleet.url}/health/ready").status_code == 503, 3)
    response = httpx.post(f"{fleet.url}/recommend", json={"history": history(2, 5)}, timeout=20)
    assert response.status_code == 200
    assert fleet.process.wait(60) == 0
    assert living(family) == []
