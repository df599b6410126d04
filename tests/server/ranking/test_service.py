"""Batches, explanations, fallbacks and deadlines, on a real bundle and the real engine."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
from starlette.testclient import TestClient
from support.engines import FailingEngine, GatedEngine

from index.bundle.bundle import Bundle
from index.popularity import Popularity
from index.sequence.events import Event, Task
from server.engine.contract import RankRequest
from server.engine.options import EngineOptions
from server.engine.torch_backend.engine import TorchEngine
from server.settings import Settings

HISTORY = [
    {"item_id": "item-3"},
    {"item_id": "unknown"},
    {"item_id": "item-7", "behaviour": "search", "query": "golden voyage"},
    {"item_id": "item-11"},
]
EVENTS = [Event(3), Event(7, Task.SEARCH, "golden voyage"), Event(11)]
POPULAR = {"fallback": "popularity"}


def ids_of(answer: dict[str, Any]) -> list[str]:
    return [item["item_id"] for item in answer["items"]]


def by_popularity(bundle: Bundle, limit: int) -> list[str]:
    counts = bundle.popularity()
    assert counts is not None
    rows = sorted(range(60), key=lambda row: (-counts[row], row))
    return [bundle.index.catalogue[row].item_id for row in rows[:limit]]


def test_batch_answers_each_request_as_if_alone(client: TestClient) -> None:
    requests: list[dict[str, Any]] = [
        {"task": "search", "query": "winter machine", "history": HISTORY, "limit": 4},
        {"task": "recommendation", "history": HISTORY},
        {"task": "recommendation", "limit": 1000},
        {"task": "recommendation", "filter": {"nothing": 1}},
    ]
    answers = client.post("/v1/batch", json={"requests": requests}).json()["answers"]
    for sent, answer in zip(requests[:2], answers[:2], strict=True):
        body = {name: value for name, value in sent.items() if name != "task"}
        path = "/search" if sent["task"] == "search" else "/recommend"
        alone = client.post(path, json=body).json()
        assert ids_of(answer) == ids_of(alone)
        scores = [[item["score"] for item in each["items"]] for each in (answer, alone)]
        assert scores[0] == pytest.approx(scores[1], abs=1e-5)
        assert answer["task"] == sent["task"]
    assert [answer["status"] for answer in answers[2:]] == [422, 422]
    assert answers[2]["errors"][0]["where"] == "body.limit"


def test_batch_is_capped_and_does_not_fill_the_queue(make_client) -> None:
    client = make_client(max_batch_requests=12, queue_limit=2, max_batch_size=2)
    entry = {"task": "recommendation", "limit": 1}
    answers = client.post("/batch", json={"requests": [entry] * 12}).json()["answers"]
    assert [len(answer["items"]) for answer in answers] == [1] * 12
    assert client.post("/batch", json={"requests": [entry] * 13}).status_code == 422
    assert client.post("/batch", json={"requests": []}).status_code == 422
    assert client.post("/batch", json={"requests": [{"limit": 1}]}).status_code == 422
    text = client.get("/metrics").text
    assert 'gems_batch_entries_total{outcome="ok",task="recommendation"} 12.0' in text
    assert 'gems_requests_total{outcome="ok",task="batch"} 1.0' in text


@pytest.mark.parametrize("query", [None, "winter machine"])
def test_explanation_is_leave_one_out(
    client: TestClient, bundle: Bundle, engine: TorchEngine, query: str | None
) -> None:
    """Effects equal those from plain rankings of the whole catalogue without each entry."""
    body = {"history": HISTORY, "explain": True} | ({"query": query} if query else {})
    answer = client.post("/search" if query else "/recommend", json=body).json()
    first = answer["items"][0]
    row = bundle.index.catalogue.row(first["item_id"])
    effects = {}
    for k, position in enumerate((0, 2, 3)):
        prompt = bundle.encoder.prompt([*EVENTS[:k], *EVENTS[k + 1 :]], query)
        ranking = engine.rank([RankRequest(prompt.ids, 60, 60)])[0]
        effects[position] = first["score"] - ranking.scores[ranking.items.index(row)]
    explanation = answer["explanation"]
    assert explanation["item_id"] == first["item_id"]
    assert explanation["unexplained"] == 0
    assert {each["position"]: each["effect"] for each in explanation["history"]} == pytest.approx(
        effects, abs=1e-4
    )
    strengths = [abs(each["effect"]) for each in explanation["history"]]
    assert strengths == sorted(strengths, reverse=True)
    assert answer["timings_ms"]["explain"] > 0


def test_explanation_is_capped_to_the_newest_entries(make_client, bundle: Bundle) -> None:
    client = make_client(max_explained=3, queue_limit=1)
    history = [{"item_id": f"item-{k}"} for k in range(40)]
    explanation = client.post("/recommend", json={"history": history, "explain": True}).json()["explanation"]
    assert {each["position"] for each in explanation["history"]} == {37, 38, 39}
    assert explanation["unexplained"] == bundle.info.max_events - 1 - 3


def test_nothing_to_explain_is_null(client: TestClient) -> None:
    assert client.post("/recommend", json={"explain": True}).json()["explanation"] is None
    everything = {"exclude": [f"item-{k}" for k in range(60)], "explain": True, "history": HISTORY}
    assert client.post("/recommend", json=everything).json()["explanation"] is None


def test_cold_start_is_popular_where_asked_for(client: TestClient, bundle: Bundle) -> None:
    for history in ([], [{"item_id": "nobody knows"}]):
        answer = client.post("/recommend", json=POPULAR | {"history": history, "limit": 7}).json()
        assert ids_of(answer) == by_popularity(bundle, 7)
        assert answer["fallback"] == "cold_start"
        assert {item["source"] for item in answer["items"]} == {"popularity"}
    for path, body in (("/recommend", {"history": HISTORY}), ("/search", {"query": "river"})):
        answer = client.post(path, json=POPULAR | body).json()
        assert answer["fallback"] is None
        assert {item["source"] for item in answer["items"]} == {"beam"}


def test_popular_answers_heed_filters_and_exclusions(client: TestClient, bundle: Bundle) -> None:
    body = POPULAR | {
        "filter": {"year": {"gte": 1990}},
        "exclude": by_popularity(bundle, 10)[:5],
        "limit": 100,
    }
    answer = client.post("/recommend", json=body).json()
    kept = [i for i in by_popularity(bundle, 60)[5:] if int(i.removeprefix("item-")) >= 40]
    assert ids_of(answer) == kept
    assert answer["fewer_than_limit"].endswith("are left by filter and exclude")


def test_model_failure_is_popular_where_asked_for(make_client, engine: TorchEngine, bundle: Bundle) -> None:
    client = make_client(FailingEngine(engine, limit=13))
    body = {"history": HISTORY, "limit": 13, "exclude_history": False}
    assert client.post("/recommend", json=body).status_code == 500
    answer = client.post("/recommend", json=body | POPULAR).json()
    assert ids_of(answer) == by_popularity(bundle, 13)
    assert answer["fallback"] == "engine_failed"
    assert 'gems_fallbacks_total{reason="engine_failed"} 1.0' in client.get("/metrics").text
    by_default = make_client(FailingEngine(engine, limit=13), fallback="popularity")
    assert by_default.post("/recommend", json=body).json()["fallback"] == "engine_failed"
    assert by_default.post("/recommend", json=body | {"fallback": "none"}).status_code == 500


def test_timeout_of_a_request(make_client, engine: TorchEngine) -> None:
    gated = GatedEngine(engine)
    client = make_client(gated)
    too_long = {"timeout_ms": int(Settings().request_timeout_ms) + 1}
    assert client.post("/recommend", json=too_long).status_code == 422
    gated.hold()
    try:
        assert client.post("/recommend", json={"timeout_ms": 50}).status_code == 504
        answer = client.post("/recommend", json={"timeout_ms": 50, "history": HISTORY} | POPULAR).json()
        assert answer["fallback"] == "deadline_exceeded"
    finally:
        gated.gate.set()


def test_scores_of_popularity_are_a_distribution(bundle: Bundle) -> None:
    popularity = Popularity.of(np.array([5, 0, 3]), 4)  # the last row came later
    assert popularity.order.tolist() == [0, 2, 1, 3]
    assert np.exp(popularity.scores).sum() == pytest.approx(1)
    assert np.exp(popularity.scores[0]) == pytest.approx(6 / 12)


def test_a_known_history_is_not_computed_again(bundle: Bundle, make_client: Any) -> None:
    engine = TorchEngine.open(bundle, EngineOptions(cache_bytes=1 << 24))
    client = make_client(engine)
    history = [{"item_id": f"item-{k}"} for k in range(8)]
    first = client.post("/recommend", json={"history": history}).json()
    second = client.post("/search", json={"history": history, "query": "winter machine"}).json()
    longer = client.post("/recommend", json={"history": [*history, {"item_id": "item-9"}]}).json()
    tokens = bundle.encoder.prompt([Event(k) for k in range(8)]).history
    assert [each["cached_tokens"] for each in (first, second, longer)] == [0, tokens, tokens]
    assert f"gems_cached_prompt_tokens_total {2 * tokens}.0" in client.get("/metrics").text
