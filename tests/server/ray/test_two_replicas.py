"""Two replicas on a real Ray: people who stay, changes that reach both, and a kill under load."""

from __future__ import annotations

import itertools
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import httpx
import pytest
from starlette.testclient import TestClient
from support.servers import wait_until

pytest.importorskip("ray", reason="no Ray: pip install 'gems-sr[ray]'")

from support.fleets import FleetProcess, answered, count, history, living

pytestmark = pytest.mark.slow  # two servers, two fronts and Ray take half a minute to start

ADMIN_KEY = "the-key"
CLIENTS = 6


@pytest.fixture(scope="module")
def fleet(tiny_bundle: Path, tmp_path_factory: pytest.TempPathFactory) -> Iterator[FleetProcess]:
    temporary = tmp_path_factory.mktemp("t")
    with FleetProcess(
        tiny_bundle,
        "--replicas",
        "2",
        GEMS_ADMIN_KEY=ADMIN_KEY,
        GEMS_PEOPLE_STORE=str(temporary / "people.db"),
    ) as started:
        yield started


def items(answer: Any) -> list[tuple[str, Any]]:
    """Return items with scores, which depend in the last digits on what is cached."""
    return [(item["item_id"], pytest.approx(item["score"], abs=1e-4)) for item in answer["items"]]


def test_a_signal_during_the_start_leaves_nothing(tiny_bundle: Path) -> None:
    starting = FleetProcess(tiny_bundle, "--fronts", "1")
    wait_until(lambda: any("raylet" in " ".join(each.cmdline()) for each in starting.family), 90)
    assert starting.stop() == [], starting.lines


def test_a_person_stays_on_one_replica(fleet: FleetProcess) -> None:
    used: set[str] = set()
    for person in range(12):
        replicas = set()
        for length in (5, 6, 9):
            body = {"history": history(person, length)}
            for path, more in (("/recommend", {}), ("/v1/search", {"query": "river"})):
                response = httpx.post(fleet.url + path, json=body | more, timeout=20)
                assert response.status_code == 200
                replicas.add(response.headers["x-replica"])
        assert len(replicas) == 1
        assert response.json()["cached_tokens"] > 0  # of the recommendation just before
        used |= replicas
    assert len(used) == 2


def test_a_remembered_person_stays_whatever_the_history(fleet: FleetProcess) -> None:
    event = {"user_id": "anna", "item_id": "item-5", "event_id": "e-1", "timestamp": 1_700_000_000}
    assert httpx.post(f"{fleet.url}/v1/events", json={"events": [event]}).status_code == 200
    replicas = set()
    for person in range(6):
        body = {"user_id": "anna", "history": history(person, 5)}
        response = httpx.post(f"{fleet.url}/recommend", json=body, timeout=20)
        assert response.json()["stored_events"] == 1
        replicas.add(response.headers["x-replica"])
    assert len(replicas) == 1


def test_metrics_are_those_of_both(fleet: FleetProcess) -> None:
    before = count(fleet, "gems_requests_total")
    replica = httpx.post(f"{fleet.url}/recommend", json={"history": history(1, 5)}, timeout=20).headers[
        "x-replica"
    ]
    after = count(fleet, "gems_requests_total")
    assert len(after) == 2
    assert {name: after[name] - before[name] for name in after} == {
        name: float(name == replica) for name in after
    }


def test_a_refresh_reaches_all(fleet: FleetProcess) -> None:
    key = {"Authorization": f"Bearer {ADMIN_KEY}"}
    response = httpx.post(f"{fleet.url}/admin/bundle/refresh", headers=key, timeout=60)
    assert response.status_code == 200
    wait_until(lambda: sum("bundle swapped" in line for line in fleet.lines) == 2)


def test_a_replica_is_killed_under_load(fleet: FleetProcess, client: TestClient) -> None:
    bodies = [{"history": history(person, 5 + person % 4), "limit": 5} for person in range(30)]
    expected = [items(client.post("/recommend", json=body).json()) for body in bodies]
    numbers = itertools.count()
    before = count(fleet, "gems_requests_total")
    victim = fleet.replicas[0]
    its_own = victim.children(recursive=True)
    end = time.monotonic() + 4

    def send() -> list[tuple[int, Any, int]]:
        found = []
        while time.monotonic() < end:
            which = next(numbers) % len(bodies)
            response, attempts = answered(f"{fleet.url}/recommend", bodies[which])
            assert response.status_code == 200
            found.append((which, response.json(), attempts))
        return found

    with ThreadPoolExecutor(CLIENTS) as pool:
        running = [pool.submit(send) for _ in range(CLIENTS)]
        time.sleep(1)
        victim.kill()
        answers = [each for work in running for each in work.result()]
    assert len(answers) > CLIENTS
    for which, answer, _ in answers:
        assert items(answer) == expected[which]
    assert living([victim, *its_own], 10) == []  # neither its engine nor the template of it
    wait_until(lambda: len(count(fleet, "gems_ready")) == 2, 90)
    assert count(fleet, "gems_requests_total").keys() != before.keys()  # another one in its place
