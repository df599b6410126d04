"""The ranking endpoints with a real bundle and the real engine."""

from __future__ import annotations

from typing import Any

import pytest
from starlette.testclient import TestClient

from index.bundle.bundle import Bundle
from index.sequence.events import Event, Task
from server.api.stages import STAGES
from server.engine.contract import RankRequest
from server.engine.torch_backend.engine import TorchEngine
from server.settings import Settings

HISTORY = [
    {"item_id": "item-3"},
    {"item_id": "item-7", "behaviour": "search", "query": "golden voyage"},
    {"item_id": "item-11", "behaviour": "recommendation", "query": None},
]
EVENTS = [Event(3), Event(7, Task.SEARCH, "golden voyage"), Event(11)]


def ids_of(answer: dict[str, Any]) -> list[str]:
    return [item["item_id"] for item in answer["items"]]


@pytest.mark.parametrize("query", [None, "winter machine"])
def test_answer_is_the_engines_answer(
    client: TestClient, bundle: Bundle, engine: TorchEngine, query: str | None
) -> None:
    body = {"history": HISTORY, "limit": 7, "exclude_history": False} | ({"query": query} if query else {})
    response = client.post("/search" if query else "/recommend", json=body)
    answer = response.json()
    prompt = bundle.encoder.prompt(EVENTS, query)
    expected = engine.rank([RankRequest(prompt.ids, 7, Settings().default_beam_width)])[0]
    assert response.status_code == 200
    assert ids_of(answer) == [bundle.index.catalogue[row].item_id for row in expected.items]
    assert [item["score"] for item in answer["items"]] == pytest.approx(expected.scores, abs=1e-5)
    assert answer["task"] == ("search" if query else "recommendation")
    assert answer["fewer_than_limit"] is None
    assert answer["dropped"] == {
        "unknown_items": [], "unknown_count": 0, "old_events": 0, "new_events": 0,
        "unknown_candidates": [], "unknown_candidates_count": 0,
    }  # fmt: skip


def test_answer_names_its_origin(client: TestClient, bundle: Bundle) -> None:
    response = client.post("/recommend", json={"history": HISTORY})
    answer = response.json()
    assert answer["request_id"] == response.headers["x-request-id"] != ""
    assert answer["bundle_id"] == bundle.info.bundle_id
    assert answer["index_version"] == bundle.index.version == "v1"
    assert [item["rank"] for item in answer["items"]] == list(range(1, Settings().default_limit + 1))
    first = answer["items"][0]
    assert first["title"] == bundle.index.catalogue[bundle.index.catalogue.row(first["item_id"])].title
    assert first["source"] == "beam"
    timings = answer["timings_ms"]
    assert set(timings) == {*STAGES, "total"}
    assert all(value >= 0 for value in timings.values())
    assert timings["total"] >= timings["prefill"] > 0


@pytest.mark.parametrize("body", [{"history": []}, {}])
def test_empty_history_is_answered_by_the_model(
    client: TestClient, bundle: Bundle, engine: TorchEngine, body: dict[str, object]
) -> None:
    answer = client.post("/recommend", json=body).json()
    expected = engine.rank([RankRequest(bundle.encoder.prompt([]).ids, 10, 50)])[0].items
    assert ids_of(answer) == [bundle.index.catalogue[row].item_id for row in expected]


def test_unknown_items_are_dropped_and_reported(client: TestClient) -> None:
    unknown = [{"item_id": f"nowhere-{k % 30}"} for k in range(45)]
    answer = client.post("/recommend", json={"history": [*unknown, *HISTORY]}).json()
    clean = client.post("/recommend", json={"history": HISTORY}).json()
    assert answer["items"] == clean["items"]
    assert answer["dropped"]["unknown_count"] == 45
    assert answer["dropped"]["unknown_items"] == [f"nowhere-{k}" for k in range(20)]


def test_long_history_uses_its_newest_entries(client: TestClient, bundle: Bundle) -> None:
    newest = [{"item_id": f"item-{k}"} for k in range(bundle.info.max_events - 1)]  # and the answer
    history = [{"item_id": f"item-{k % 60}"} for k in range(10_000)] + newest
    repeats = {"exclude_history": False}
    answer = client.post("/recommend", json=repeats | {"history": history}).json()
    assert answer["dropped"]["old_events"] == 10_000
    assert answer["items"] == client.post("/recommend", json=repeats | {"history": newest}).json()["items"]


def test_history_may_hold_as_many_entries_as_the_setting_says(client: TestClient) -> None:
    history = [{"item_id": "item-1"}] * Settings().max_history
    assert client.post("/recommend", json={"history": history}).status_code == 200
    response = client.post("/recommend", json={"history": [*history, {"item_id": "item-1"}]})
    assert response.status_code == 422
    assert response.json()["errors"][0]["where"] == "body.history"


@pytest.mark.parametrize(
    ("task", "excludes_by_default"), [("recommendation", True), ("search", False)], ids=str
)
def test_the_task_decides_whether_history_comes_back_unless_the_request_does(
    client: TestClient, task: str, excludes_by_default: bool
) -> None:
    seen = {f"item-{k}" for k in range(55)}
    body: dict[str, Any] = {"history": [{"item_id": item} for item in sorted(seen)], "limit": 10}
    if task == "search":
        body["query"] = "river"
    for chosen in (None, True, False, ...):  # ...: the field is absent
        sent = body if chosen is ... else body | {"exclude_history": chosen}
        path = "/search" if task == "search" else "/recommend"
        (batched,) = client.post("/batch", json={"requests": [{"task": task} | sent]}).json()["answers"]
        for answer in (client.post(path, json=sent).json(), batched):
            excludes = chosen if isinstance(chosen, bool) else excludes_by_default
            if excludes:
                assert sorted(ids_of(answer)) == [f"item-{k}" for k in range(55, 60)]
                reason = "5 of the catalogue's 60 items are left by exclude_history"
                assert answer["fewer_than_limit"] == reason
            else:
                assert set(ids_of(answer)) & seen
                assert answer["fewer_than_limit"] is None


def test_a_known_item_is_found_again_by_a_search(client: TestClient) -> None:
    """People look for what they took before; a recommendation of it would be no help."""
    (item,) = client.post("/search", json={"query": "golden voyage", "limit": 1}).json()["items"]
    history = [{"item_id": item["item_id"]}]
    again = client.post("/search", json={"query": "golden voyage", "history": history, "limit": 60}).json()
    assert item["item_id"] in ids_of(again)
    recommended = client.post("/recommend", json={"history": history, "limit": 60}).json()
    assert sorted([*ids_of(recommended), item["item_id"]]) == sorted(f"item-{k}" for k in range(60))


def test_everything_excluded_leaves_an_empty_answer_with_its_reason(client: TestClient) -> None:
    body = {"history": [{"item_id": f"item-{k}"} for k in range(60)]}
    answer = client.post("/recommend", json=body).json()
    assert answer["items"] == []
    assert answer["fewer_than_limit"] == "0 of the catalogue's 60 items are left by exclude_history"


@pytest.mark.parametrize("path", ["/search", "/recommend"])
def test_unknown_candidates_are_dropped_and_reported(client: TestClient, path: str) -> None:
    body: dict[str, Any] = {"query": "river"} if path == "/search" else {}
    unknown = [f"nowhere-{k % 30}" for k in range(45)]
    known = ["item-3", "item-5"]
    answer = client.post(path, json=body | {"candidates": [*unknown, *known]}).json()
    assert answer["items"] == client.post(path, json=body | {"candidates": known}).json()["items"]
    assert sorted(ids_of(answer)) == known
    assert answer["dropped"]["unknown_candidates"] == [f"nowhere-{k}" for k in range(20)]
    assert answer["dropped"]["unknown_candidates_count"] == 45
    assert answer["fewer_than_limit"] == "2 of the catalogue's 60 items are left by candidates"
    for fallback in ("none", "popularity"):
        nothing = client.post(path, json=body | {"candidates": unknown, "fallback": fallback})
        assert nothing.status_code == 200
        assert nothing.json()["items"] == []
        assert nothing.json()["fewer_than_limit"] == "the catalogue holds none of the candidates"


def test_a_batch_drops_unknown_candidates_and_refuses_strict_entries_alone(client: TestClient) -> None:
    entry = {"task": "recommendation", "candidates": ["item-1", "nowhere"]}
    requests = [entry, entry | {"strict": True}, {"task": "recommendation", "candidates": ["nowhere"]}]
    dropped, refused, empty = client.post("/batch", json={"requests": requests}).json()["answers"]
    assert ids_of(dropped) == ["item-1"]
    assert dropped["dropped"]["unknown_candidates"] == ["nowhere"]
    assert refused["errors"] == [
        {"where": "body.candidates.1", "message": "the catalogue holds no such item"}
    ]
    assert empty["items"] == []


def test_a_strict_request_of_known_items_is_answered(client: TestClient) -> None:
    body = {"history": HISTORY, "exclude": ["item-1"], "candidates": ["item-1", "item-2"], "strict": True}
    assert ids_of(client.post("/recommend", json=body).json()) == ["item-2"]


@pytest.mark.parametrize("path", ["/search", "/recommend"])
def test_filter_candidates_and_exclusions_hold_together(client: TestClient, path: str) -> None:
    """Item k has year 1950 + k and genre k mod 5 (0: Drama)."""
    body: dict[str, Any] = {"limit": 10, "filter": {"categories": "Drama", "year": {"gte": 1960, "lt": 1990}}}
    if path == "/search":
        body["query"] = "river"
    dramas = [f"item-{k}" for k in range(10, 40, 5)]
    assert sorted(ids_of(client.post(path, json=body).json())) == dramas
    body["candidates"] = ["item-0", "item-10", "item-11", "item-20", "item-30", "item-30"]
    assert sorted(ids_of(client.post(path, json=body).json())) == ["item-10", "item-20", "item-30"]
    body |= {"exclude": ["item-20", "never heard of"], "history": [{"item_id": "item-10"}]}
    body["exclude_history"] = False
    assert sorted(ids_of(client.post(path, json=body).json())) == ["item-10", "item-30"]
    answer = client.post(path, json=body | {"exclude_history": True}).json()
    assert ids_of(answer) == ["item-30"]
    reason = "1 of the catalogue's 60 items is left by filter, candidates, exclude and exclude_history"
    assert answer["fewer_than_limit"] == reason


def test_a_filter_that_nothing_matches_leaves_an_empty_answer(client: TestClient) -> None:
    answer = client.post("/recommend", json={"filter": {"year": 3000}}).json()
    assert answer["items"] == []
    assert answer["fewer_than_limit"] == "0 of the catalogue's 60 items are left by filter"


def test_limit_beyond_the_catalogue_returns_all_of_it(client: TestClient) -> None:
    answer = client.post("/search", json={"query": "river", "limit": 100}).json()
    assert sorted(ids_of(answer)) == sorted(f"item-{k}" for k in range(60))
    assert answer["fewer_than_limit"] == "the catalogue holds only 60 items"


def test_beam_width_below_the_limit_still_fills_it(client: TestClient) -> None:
    answer = client.post("/recommend", json={"limit": 30, "beam_width": 1}).json()
    assert len(answer["items"]) == 30


@pytest.mark.parametrize(
    "query", ["<|search|>", "<|item|> <|0:3|><|1:2|>", "<|endoftext|>", "star\x00", "星😀"]
)
def test_query_never_becomes_a_control_or_item_token(client: TestClient, bundle: Bundle, query: str) -> None:
    ids = bundle.encoder.encode_text(query)
    assert ids
    assert max(ids) < bundle.info.first_added_token
    history = [{"item_id": "item-1", "behaviour": "search", "query": query}]
    response = client.post("/search", json={"query": query, "history": history})
    assert response.status_code == 200
    assert len(response.json()["items"]) == 10


def test_health_and_info(client: TestClient, bundle: Bundle) -> None:
    assert client.get("/health/live").json() == {"status": "live"}
    assert client.get("/health/ready").json() == {"status": "ready"}
    info = client.get("/info").json()
    assert (info["bundle_id"], info["items"]) == (bundle.info.bundle_id, 60)
    assert info["limits"]["max_history"] == Settings().max_history
    assert info["data"] == {"name": "tiny"}


def test_draining_server_is_not_ready_but_answers(make_client) -> None:
    client = make_client()
    client.app.state.readiness.stage = "draining"
    response = client.get("/health/ready")
    assert response.status_code == 503
    assert response.json()["detail"] == "The server is draining."
    assert client.get("/health/live").status_code == 200
    assert client.post("/recommend", json={}).status_code == 200


def test_openapi_describes_bodies_and_problems(client: TestClient) -> None:
    schema = client.get("/openapi.json").json()
    for path in ("/v1/search", "/v1/recommend", "/v1/batch"):
        operation = schema["paths"][path]["post"]
        assert "application/json" in operation["requestBody"]["content"]
        assert set(operation["responses"]) == {
            *("200", "400", "401", "408", "413", "415", "422", "429", "500", "503", "504"),
        }
        assert list(operation["responses"]["422"]["content"]) == ["application/problem+json"]
    assert set(schema["paths"]) == {
        *("/v1/search", "/v1/recommend", "/v1/batch", "/metrics", "/info", "/health/live", "/health/ready"),
        *("/v1/items", "/v1/events", "/v1/users/{user_id}", "/admin/index/refresh", "/admin/bundle/refresh"),
    }
    assert client.get("/docs").status_code == 200


def test_short_paths_are_aliases(client: TestClient) -> None:
    for path, body in (("/search", {"query": "river"}), ("/recommend", {"history": HISTORY})):
        long, short = (client.post(prefix + path, json=body).json() for prefix in ("/v1", ""))
        assert long["items"] == short["items"]
