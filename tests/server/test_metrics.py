"""Counters equal what happened; the number of series never grows."""

from __future__ import annotations

from typing import Any

import pytest
from prometheus_client.parser import text_string_to_metric_families
from starlette.testclient import TestClient

from server.metrics import outcome


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


def test_series_never_grow(make_client) -> None:
    client = make_client()
    before = set(scrape(client))
    requests: list[tuple[str, str, dict[str, Any]]] = [
        ("POST", "/search", {"json": {"query": "a"}}),
        ("POST", "/recommend", {"json": {"limit": 0}}),
        ("POST", "/recommend", {"content": b"{"}),
        *(("GET", f"/random-{k}", {}) for k in range(20)),
        *((f"METHOD{k}", "/search", {}) for k in range(20)),
    ]
    for method, path, options in requests:
        client.request(method, path, **options)
    assert set(scrape(client)) == before


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
