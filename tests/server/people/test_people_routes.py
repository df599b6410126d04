"""The endpoints about people on a real store, and rankings by `user_id`."""

from __future__ import annotations

import json
import time
from pathlib import Path
from typing import Any

import pytest
from starlette.testclient import TestClient

HISTORY = [
    {"item_id": "item-3"},
    {"item_id": "item-7", "behaviour": "search", "query": "golden voyage"},
    {"item_id": "item-11"},
    {"item_id": "gone"},
    {"item_id": "item-20", "behaviour": "search", "query": "  winter  machine \x00 \U0001f600"},
]


@pytest.fixture
def store(tmp_path: Path) -> Path:
    return tmp_path / "people.db"


@pytest.fixture
def client(make_client: Any, store: Path) -> TestClient:
    client: TestClient = make_client(people_store=str(store), people_events=50)
    return client


def events(user_id: str, history: list[dict[str, Any]], first: int = 1) -> dict[str, Any]:
    """The body that has the server remember a history."""
    return {
        "events": [
            {"event_id": f"e{k}", "user_id": user_id, "timestamp": 1000.0 + k, **entry}
            for k, entry in enumerate(history, start=first)
        ]
    }


def sent(client: TestClient, body: dict[str, Any]) -> dict[str, Any]:
    response = client.post("/v1/events", json=body)
    assert response.status_code == 200, response.text
    answer: dict[str, Any] = response.json()
    return answer


def counts(answer: dict[str, Any]) -> tuple[int, int, int]:
    return answer["stored"], answer["duplicates"], answer["outdated"]


def same(answer: dict[str, Any]) -> dict[str, Any]:
    """The parts of an answer that do not depend on the request's time, place or history's way."""
    others = ("request_id", "timings_ms", "cached_tokens", "stored_history", "stored_events")
    return {name: value for name, value in answer.items() if name not in others}


@pytest.mark.parametrize("path", ["/v1/recommend", "/v1/search"])
@pytest.mark.parametrize("split", [0, 3, 5])
def test_a_stored_history_ranks_as_the_same_one_that_is_sent(
    client: TestClient, path: str, split: int
) -> None:
    """Bit for bit: scores are compared as numbers, not nearly. The rest of the history is sent behind it."""
    if split:
        assert counts(sent(client, events("u1", HISTORY[:split]))) == (split, 0, 0)
    asked = {"limit": 20, "explain": True, **({"query": "river"} if path.endswith("search") else {})}
    client.post(path, json={**asked, "history": HISTORY})  # both find the same in the prefix cache
    inline = client.post(path, json={**asked, "history": HISTORY}).json()
    stored = client.post(path, json={**asked, "user_id": "u1", "history": HISTORY[split:]}).json()
    assert (stored["stored_history"], stored["stored_events"]) == ("read", split)
    assert (inline["stored_history"], inline["stored_events"]) == (None, 0)
    assert same(stored) == same(inline)
    assert len(stored["items"]) == 20
    nothing = client.post(path, json=asked).json()
    assert nothing["items"] != inline["items"]


def test_a_batch_reads_each_person(client: TestClient) -> None:
    sent(client, events("u1", HISTORY))
    sent(client, events("u2", HISTORY[:1]))
    entries = [{"task": "recommendation", "user_id": user} for user in ("u1", "u2", "nobody")]
    answers = client.post("/batch", json={"requests": entries}).json()["answers"]
    assert [each["stored_events"] for each in answers] == [5, 1, 0]
    for answer, history in zip(answers, (HISTORY, HISTORY[:1], []), strict=True):
        assert same(answer) == same(client.post("/recommend", json={"history": history}).json())


def test_an_event_that_is_sent_again_is_stored_once(client: TestClient) -> None:
    assert counts(sent(client, events("u1", HISTORY))) == (5, 0, 0)
    assert counts(sent(client, events("u1", HISTORY))) == (0, 5, 0)
    body = events("u1", [*HISTORY, *HISTORY])  # e1 to e10
    assert counts(sent(client, body)) == (5, 5, 0)
    twice = {"events": [{"event_id": "x", "user_id": "u1", "item_id": each} for each in ("item-1", "item-2")]}
    assert counts(sent(client, twice)) == (1, 1, 0)
    kept = client.get("/v1/users/u1").json()["events"]
    assert [event["event_id"] for event in kept] == [f"e{k}" for k in range(1, 11)] + ["x"]
    assert kept[-1]["item_id"] == "item-1"  # the first one stays
    assert counts(sent(client, events("u2", HISTORY))) == (5, 0, 0)  # the same ids, another person


def test_events_are_kept_as_they_were_sent_also_with_unknown_items(client: TestClient) -> None:
    answer = sent(client, events("Ünï @ 1|2%3", HISTORY))
    assert (answer["unknown_items"], answer["unknown_count"]) == (["gone"], 1)
    kept = client.get("/v1/users/%C3%9Cn%C3%AF%20@%201%7C2%253").json()
    assert kept["user_id"] == "Ünï @ 1|2%3"
    assert kept["events"] == [
        {"event_id": f"e{k}", "behaviour": "recommendation", "query": None, "timestamp": 1000.0 + k, **entry}
        for k, entry in enumerate(HISTORY, start=1)
    ]
    ranked = client.post("/recommend", json={"user_id": "Ünï @ 1|2%3"}).json()
    assert ranked["dropped"]["unknown_items"] == ["gone"]
    strict = client.post("/recommend", json={"user_id": "Ünï @ 1|2%3", "strict": True})
    assert strict.status_code == 200  # strict is about what the request names itself


def test_events_are_ordered_by_time_and_then_by_arrival(client: TestClient) -> None:
    moments = {"late": 30.5, "early": 10, "tie-1": 20, "tie-2": 20, "first": 0}
    for name, moment in moments.items():  # a clock that runs backwards, and one that stands
        one = {"event_id": name, "user_id": "u", "item_id": "item-1", "timestamp": moment}
        sent(client, {"events": [one]})
    kept = client.get("/users/u").json()["events"]
    assert [each["event_id"] for each in kept] == ["first", "early", "tie-1", "tie-2", "late"]


def test_events_without_a_time_get_one_and_stay_in_order(client: TestClient) -> None:
    ahead = time.time() + 3600
    sent(
        client,
        {"events": [{"event_id": "ahead", "user_id": "u", "item_id": "item-1", "timestamp": ahead}]},
    )
    for k in range(3):
        sent(client, {"events": [{"event_id": f"e{k}", "user_id": "u", "item_id": "item-1"}]})
    kept = client.get("/users/u").json()["events"]
    assert [each["event_id"] for each in kept] == ["ahead", "e0", "e1", "e2"]
    assert all(each["timestamp"] == ahead for each in kept)


EVENT = {"event_id": "e", "user_id": "u", "item_id": "item-1"}
WRONG: list[tuple[dict[str, Any], str]] = [
    ({"user_id": "u" * 10_000}, "at most 512"),
    ({"user_id": ""}, "at least 1"),
    ({"user_id": "a/b"}, "printable characters other than '/'"),
    ({"user_id": ".."}, "printable"),
    ({"user_id": "a\nb"}, "printable"),
    ({"event_id": "e" * 513}, "at most 512"),
    ({"item_id": ""}, "at least 1"),
    ({"behaviour": "click"}, "'search' or 'recommendation'"),
    ({"behaviour": "search"}, "non-blank 'query'"),
    ({"behaviour": "search", "query": "q" * 501}, "at most 500"),
    ({"timestamp": 1767225600000}, "not in milliseconds"),
    ({"timestamp": -1}, "greater than or equal to 0"),
    ({"timestamp": "2026-01-01"}, "valid number"),
    ({"timestamp": True}, "valid number"),
    ({"user": "u"}, "unknown field 'user'; did you mean 'user_id'?"),
]


@pytest.mark.parametrize(("change", "message"), WRONG, ids=lambda each: str(each)[:60])
def test_one_wrong_event_is_named_and_nothing_is_stored(
    client: TestClient, change: dict[str, Any], message: str
) -> None:
    response = client.post("/v1/events", json={"events": [EVENT, EVENT | {"event_id": "f"} | change]})
    assert response.status_code == 422
    (error,) = response.json()["errors"]
    assert error["where"].startswith("body.events.1")
    assert message in error["message"]
    assert client.get("/v1/users/u").status_code == 404


@pytest.mark.parametrize("number", [0, 1001])
def test_a_request_takes_a_thousand_events(client: TestClient, number: int) -> None:
    assert client.post("/events", json={"events": [EVENT] * number}).status_code == 422
    assert counts(sent(client, {"events": [EVENT] * 1000})) == (1, 999, 0)


def test_a_user_id_in_a_path_is_bounded(client: TestClient) -> None:
    for method in ("GET", "DELETE"):
        response = client.request(method, f"/v1/users/{'u' * 513}")
        assert response.status_code == 422
        assert response.json()["errors"][0]["where"] == "path.user_id"
        assert client.request(method, "/v1/users/a/b").status_code == 404
        assert client.request(method, "/v1/users/").status_code == 404


def test_the_newest_events_are_kept(client: TestClient) -> None:
    many = [{"item_id": f"item-{k % 60}"} for k in range(120)]
    assert counts(sent(client, events("u", many))) == (50, 0, 70)
    kept = client.get("/users/u").json()["events"]
    assert [each["event_id"] for each in kept] == [f"e{k}" for k in range(71, 121)]
    assert counts(sent(client, events("u", many))) == (
        0,
        50,
        70,
    )  # again: what was pushed out does not come back
    assert client.get("/users/u").json()["events"] == kept
    inline = client.post("/recommend", json={"history": many[70:]}).json()
    assert same(client.post("/recommend", json={"user_id": "u"}).json()) == same(inline)


def test_old_events_are_neither_taken_nor_read(make_client: Any, store: Path) -> None:
    now = time.time()
    ages = {"new": 1, "old": 3 * 86_400, "older": 20 * 86_400}
    body = {
        "events": [EVENT | {"event_id": name, "timestamp": now - age} for name, age in ages.items()],
    }
    assert counts(sent(make_client(people_store=str(store), people_days=10), body)) == (2, 0, 1)
    shorter = make_client(people_store=str(store), people_days=1.5)
    assert [each["event_id"] for each in shorter.get("/users/u").json()["events"]] == ["new"]
    assert shorter.post("/recommend", json={"user_id": "u"}).json()["stored_events"] == 1


def test_a_forgotten_person_is_gone(client: TestClient) -> None:
    sent(client, events("u1", HISTORY))
    sent(client, events("u2", HISTORY))
    assert client.delete("/v1/users/u1").json()["events"] == 5
    assert client.delete("/v1/users/u1").json()["events"] == 0
    assert client.get("/v1/users/u1").status_code == 404
    assert client.post("/recommend", json={"user_id": "u1"}).json()["stored_events"] == 0
    assert len(client.get("/v1/users/u2").json()["events"]) == 5
    assert counts(sent(client, events("u1", HISTORY))) == (5, 0, 0)


def test_without_a_store_nobody_is_remembered(make_client: Any) -> None:
    client = make_client()
    for method, path in (("POST", "/v1/events"), ("GET", "/users/u"), ("DELETE", "/users/u")):
        response = client.request(method, path, json={"events": [EVENT]} if method == "POST" else None)
        assert response.status_code == 404
        assert "GEMS_PEOPLE_STORE" in response.json()["detail"]
    response = client.post("/recommend", json={"user_id": "u"})
    assert response.status_code == 422
    assert response.json()["errors"][0]["where"] == "body.user_id"
    assert client.get("/info").json()["remembers_people"] is False


def test_people_need_a_key_as_rankings_do(make_client: Any, store: Path) -> None:
    client = make_client(people_store=str(store), api_keys="key")
    assert client.get("/info").json()["remembers_people"] is True
    for prefix in ("", "/v1"):
        for method, path in (
            ("POST", "/events"), ("GET", "/users/u"), ("HEAD", "/users/u"), ("DELETE", "/users/u")
        ):  # fmt: skip
            body = {"events": [EVENT]} if method == "POST" else None
            asked = {"method": method, "url": prefix + path, "json": body}
            assert client.request(**asked).status_code == 401
            assert client.request(**asked, headers={"authorization": "Bearer key"}).status_code in (200, 404)


def test_metrics_count_what_happened(client: TestClient) -> None:
    sent(client, events("u1", HISTORY))
    sent(client, events("u1", HISTORY))
    client.post("/recommend", json={"user_id": "u1"})
    client.post("/recommend", json={})
    text = client.get("/metrics").text
    assert 'gems_events_total{outcome="stored"} 5.0' in text
    assert 'gems_events_total{outcome="duplicates"} 5.0' in text
    assert "gems_unknown_event_items_total 2.0" in text
    assert 'gems_store_seconds_count{operation="write"} 2.0' in text
    assert 'gems_store_seconds_count{operation="read"} 1.0' in text
    assert 'gems_stage_seconds_count{stage="history"} 1.0' in text
    assert 'gems_store_failures_total{operation="read"} 0.0' in text


def test_no_problem_repeats_an_id(client: TestClient) -> None:
    for change in ({"user_id": "secret/person"}, {"user_id": "secret" * 1000}):
        assert "secret" not in client.post("/events", json={"events": [EVENT | change]}).text
        assert "secret" not in json.dumps(client.post("/recommend", json=change).json())
