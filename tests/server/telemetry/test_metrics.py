"""Counters agree with the requests; the number of series never grows."""

from __future__ import annotations

import math
import random
import sys
from dataclasses import replace

import numpy as np
import pytest
from prometheus_client.parser import text_string_to_metric_families
from starlette.testclient import TestClient

from index.bundle.bundle import Bundle
from server.telemetry.metrics import Metrics, outcome


def scrape(client: TestClient) -> dict[tuple[str, frozenset[tuple[str, str]]], float]:
    response = client.get("/metrics")
    assert response.status_code == 200
    families = text_string_to_metric_families(response.text)
    return {(s.name, frozenset(s.labels.items())): s.value for family in families for s in family.samples}


def value(client: TestClient, name: str, **labels: str) -> float:
    return scrape(client)[name, frozenset(labels.items())]


def test_counters_equal_what_happened(make_client) -> None:
    client = make_client(max_body_bytes=5000)
    for _ in range(3):
        client.post("/search", json={"query": "river"})
    client.post("/recommend", json={"history": [{"item_id": "nowhere"}] * 4, "limit": 100})
    client.post("/recommend", json={"history": [{"item_id": "item-1"}] * 25})
    client.post("/search", json={"query": ""})
    client.post("/recommend", content=b"x" * 6000, headers={"content-type": "application/json"})
    client.get("/nowhere")

    def count(task: str, name: str) -> float:
        return value(client, "gems_requests_total", task=task, outcome=name)

    assert count("search", "ok") == 3
    assert count("search", "invalid") == 1
    assert count("recommendation", "ok") == 2
    assert count("recommendation", "invalid") == 1
    assert value(client, "gems_request_seconds_count", task="search") == 4
    assert value(client, "gems_stage_seconds_count", stage="prefill") == 5
    assert value(client, "gems_batch_size_sum") == 5
    assert value(client, "gems_rejected_total", reason="body_too_large") == 1
    assert value(client, "gems_fewer_than_limit_total", task="recommendation") == 1
    assert value(client, "gems_unknown_history_items_total") == 4
    assert value(client, "gems_old_history_events_total") == 6
    assert value(client, "gems_ready") == 1
    assert value(client, "gems_queue_depth") == 0


def test_bundle_is_named(client: TestClient) -> None:
    names = {labels for (name, labels), _ in scrape(client).items() if name == "gems_bundle_info"}
    assert [dict(each)["bundle_id"] for each in names] == ["tiny-llama-60"]


def throw_random_requests(client: TestClient, count: int) -> dict[str, int]:
    """Send requests with random users, paths, methods and keys; return the number of recommendations by outcome."""
    rng = random.Random(0)
    sent = {"ok": 0, "invalid": 0}
    for k in range(count):
        person = f"{rng.getrandbits(64):x}"
        kind = rng.randrange(50)
        if kind == 0:
            history = [{"item_id": person}, {"item_id": "item-1", "behaviour": "search", "query": person}]
            assert client.post("/recommend", json={"history": history, "limit": 1}).status_code == 200
            sent["ok"] += 1
        elif kind < 10:
            assert client.post("/v1/recommend", json={person: k}).status_code == 422
            sent["invalid"] += 1
        elif kind < 20:
            client.request(person.upper(), "/search", headers={"authorization": f"Bearer {person}"})
        elif kind < 30:
            client.post(f"/v1/{person}", json={"query": person})
        elif kind < 35:
            assert client.get("/v1/items", params={"prefix": person, "limit": 1}).status_code == 200
        else:
            client.get(f"/{person}?{person}={person}")
    return sent


def test_series_never_grow(make_client) -> None:
    random_users_leave_the_series_as_they_are(make_client(), 300)


@pytest.mark.slow
def test_series_never_grow_with_a_hundred_thousand(make_client) -> None:
    random_users_leave_the_series_as_they_are(make_client(), 100_000)


def random_users_leave_the_series_as_they_are(client: TestClient, count: int) -> None:
    before = set(scrape(client))
    sent = throw_random_requests(client, count)
    client.post("/recommend", content=b"{", headers={"content-type": "application/json"})
    after = scrape(client)
    assert set(after) == before

    def total(name: str) -> float:
        return after["gems_requests_total", frozenset({("task", "recommendation"), ("outcome", name)})]

    assert (total("ok"), total("invalid")) == (sent["ok"], sent["invalid"] + 1)


def test_the_bundles_own_figures_are_told(bundle: Bundle) -> None:
    record = {
        "conflict": 1.02,
        "validation": {"search.loss": 3.5, "recommendation.hit@10": 0.1, "score": "?"},
    }
    metrics = Metrics()
    metrics.show(metrics.describe(replace(bundle, info=replace(bundle.info, training=record))))
    read = metrics.registry.get_sample_value
    assert read("gems_training_conflict") == 1.02
    assert read("gems_training_validation", {"task": "search", "figure": "loss"}) == 3.5
    assert read("gems_training_validation", {"task": "recommendation", "figure": "hit@10"}) == 0.1
    assert math.isnan(read("gems_training_validation", {"task": "search", "figure": "ndcg@10"}) or 0)
    assert read("gems_bundle_created_timestamp_seconds") == 1767225600
    metrics.show(metrics.describe(bundle))
    assert math.isnan(read("gems_training_conflict") or 0)


@pytest.mark.skipif(sys.platform != "linux", reason="only Linux tells")
def test_memory_is_that_of_the_process() -> None:
    metrics = Metrics()
    metrics.watch_memory(lambda: None)

    def read(process: str) -> float:
        return metrics.registry.get_sample_value("gems_resident_memory_bytes", {"process": process}) or 0.0

    before = read("server")
    grown = np.ones(100_000_000, np.int8)  # kept to the end
    assert read("server") - before == pytest.approx(grown.nbytes, rel=0.2)
    assert math.isnan(read("engine"))
    assert read("server") < (metrics.registry.get_sample_value("gems_memory_limit_bytes") or 0)


def test_every_metric_has_our_prefix(client: TestClient) -> None:
    assert all(name.startswith("gems_") for name, _ in scrape(client))


@pytest.mark.parametrize(
    ("status", "name"),
    [
        *[(200, "ok"), (400, "invalid"), (413, "invalid"), (429, "rejected"), (499, "cancelled")],
        *[(500, "error"), (503, "unavailable"), (504, "timeout")],
    ],
)
def test_outcome(status: int, name: str) -> None:
    assert outcome(status) == name
