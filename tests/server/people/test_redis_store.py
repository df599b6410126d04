"""The store in Redis or Valkey, against a real server of this machine. Without one, or its client, this is skipped."""

from __future__ import annotations

import asyncio
import random
import signal
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager
from typing import Any, TypeVar

import pytest
from support.redis import PROGRAM, Redis, wait_for
from support.stores import NOW, event, opened_store, run

from server.people import redis_store
from server.people.interaction import Appended, Interaction
from server.people.open import open_store
from server.people.redis_store import FORMAT_KEY, RedisStore
from server.people.store import Keep, StoreError, StoreFullError, StoreRefusedError

redis = pytest.importorskip("redis", reason="no client of Redis: pip install 'gems-sr[redis]'")
pytestmark = pytest.mark.skipif(PROGRAM is None, reason="no redis-server or valkey-server on this machine")

T = TypeVar("T")
KEEP = Keep()


@pytest.fixture(scope="module")
def server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Redis]:
    started = Redis(tmp_path_factory.mktemp("redis"))
    yield started
    started.kill()


@pytest.fixture(autouse=True)
def empty(server: Redis) -> None:
    server.client.flushall()


def opened(
    server: Redis, keep: Keep = KEEP, clock: Callable[[], float] = lambda: NOW
) -> AbstractContextManager[RedisStore]:
    return opened_store(RedisStore(server.url, keep, clock))


def test_any_order_of_arrival_gives_what_a_sorted_list_gives(server: Redis) -> None:
    """Random events of a few people, some sent again, with a cap; the oracle keeps a sorted list of each."""
    rng = random.Random(3)
    model: dict[str, list[Interaction]] = {}
    with opened(server, Keep(25)) as store:
        for _ in range(80):
            sent = [
                event(f"u{rng.randrange(4)}", rng.randrange(10**6), rng.randrange(400) / 8) for _ in range(5)
            ]
            known = sorted((each for theirs in model.values() for each in theirs), key=str)
            sent += rng.sample(known, min(2, len(known)))
            done = run(store.append(sent))
            again = sum(each in model.get(each.user_id, []) for each in sent)
            assert done.duplicates == again
            for each in sent:
                if each not in (theirs := model.setdefault(each.user_id, [])):
                    theirs.append(each)
            for user, theirs in model.items():
                model[user] = sorted(theirs, key=lambda each: each.timestamp or 0)[-25:]
        for user, theirs in model.items():
            assert run(store.history(user)) == theirs
    for user in model:
        assert server.client.zcard(f"gems:order:{{{user}}}") == 25
        assert server.client.hlen(f"gems:events:{{{user}}}") == 26  # and the count of arrivals


def test_texts_come_back_as_they_were(server: Redis) -> None:
    odd = [
        Interaction("Ünï {x}|2", name, f"item {name}", query, 1.1 + 0.1)
        for name, query in (
            ("a\0b", "nul \0 inside"),
            ("\U0001f600", "two\nlines \u2028"),
            ("0 1", None),
            ("{", ""),
        )
    ]
    with opened(server) as store:
        assert run(store.append(odd)) == Appended(4, 0, 0)
        assert run(store.history("Ünï {x}|2")) == odd
        assert run(store.append(odd)) == Appended(0, 4, 0)


def test_clocks_caps_and_ages_are_those_of_the_contract(server: Redis) -> None:
    moments = iter([NOW, NOW - 50, NOW - 100])
    with opened(server, clock=lambda: next(moments, NOW)) as store:
        for k in range(3):
            run(store.append([event("u", k)]))
        assert [(each.event_id, each.timestamp) for each in run(store.history("u"))] == [
            (f"e{k}", NOW) for k in range(3)
        ]
    moment = time.time()
    with opened(server, Keep(2, 60), lambda: moment) as store:
        sent = [event("v", k, moment - age) for k, age in enumerate((90, 30, 20, 10))]
        assert run(store.append(sent)) == Appended(2, 0, 2)
        assert run(store.append(sent)) == Appended(0, 2, 2)
        moment += 45
        assert [each.event_id for each in run(store.history("v"))] == ["e3"]
        run(store.append([event("v", 9, moment)]))
        assert server.client.hkeys("gems:events:{v}") == ["", "e3", "e9"]
        assert 0 < server.client.ttl("gems:order:{v}") <= 106


def test_who_was_forgotten_is_in_no_key_and_no_file_and_others_hear_of_it(
    server: Redis, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(redis_store, "TICK_SECONDS", 0.02)
    with opened(server) as one, opened(server) as other:
        heard: list[str] = []
        one.on_forgotten = lambda: heard.append("one")
        other.on_forgotten = lambda: heard.append("other")
        run(
            one.append([Interaction("the-person", "e", "their-item", "their-words", 1.0), event("u", 1, 1.0)])
        )
        threading.Event().wait(0.2)  # both look at the count
        assert run(one.forget("the-person")) == 1
        assert run(one.history("the-person")) == []
        assert sorted(server.client.keys("gems:e*")) == ["gems:events:{u}"]
        wait_for(lambda: bool(heard))
        threading.Event().wait(0.1)
        assert heard == ["other"]

        def held() -> bool:
            data = b"".join(each.read_bytes() for each in server.folder.rglob("*") if each.is_file())
            return any(mark in data for mark in (b"the-person", b"their-item", b"their-words"))

        wait_for(lambda: not held())


def test_acknowledged_events_survive_a_kill_of_the_store(server: Redis) -> None:
    acknowledged: list[str] = []

    async def client(store: RedisStore, first: int) -> None:
        for number in range(first, 10**6, 8):
            await store.append([event(f"u{number % 5}", number, float(number))])
            acknowledged.append(f"e{number}")

    async def until_killed(store: RedisStore) -> list[Any]:
        return await asyncio.gather(*(client(store, k) for k in range(8)), return_exceptions=True)

    with opened(server) as store:
        killer = threading.Timer(0.5, server.kill)
        killer.start()
        assert all(isinstance(each, StoreError) for each in run(until_killed(store)))
        with pytest.raises(StoreError):
            run(store.history("u1"))
        server.start()
        found = [each.event_id for k in range(5) for each in run(store.history(f"u{k}"))]
    assert len(acknowledged) > 20
    assert len(found) == len(set(found))
    assert set(acknowledged) <= set(found)


def test_a_store_that_is_not_there_yet_is_no_reason_not_to_start(server: Redis) -> None:
    server.kill()
    try:
        store = open_store(server.url, Keep())
        with pytest.raises(StoreError):
            run(store.append([event("u", 1, 1.0)]))
    finally:
        server.start()
    assert run(store.append([event("u", 1, 1.0)])) == Appended(1, 0, 0)
    store.close()


def test_another_format_an_address_or_a_password_that_is_wrong_is_refused(server: Redis) -> None:
    server.client.set(FORMAT_KEY, "7")
    with pytest.raises(StoreRefusedError, match="of format 7"):
        open_store(server.url, Keep())
    with pytest.raises(StoreRefusedError, match="no address"):
        open_store("redis://127.0.0.1:port/0", Keep())
    with pytest.raises(StoreRefusedError, match="refuses this server") as refused:
        open_store(server.url.replace("redis://", "redis://user:hidden@"), Keep())
    assert "hidden" not in str(refused.value)


def test_more_than_may_wait_is_refused(server: Redis, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(redis_store, "MOST_WAITING", 3)
    with opened(server) as store:
        with pytest.raises(StoreFullError):
            run(store.append([event("u", k, 1.0) for k in range(4)]))
        for _ in range(3):
            run(store.append([event("u", k, 1.0) for k in range(3)]))


def test_a_redis_that_hangs_costs_the_history_alone(
    server: Redis, make_client: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(redis_store, "TICK_SECONDS", 0.02)
    monkeypatch.setattr(redis_store, "ANSWER_SECONDS", 0.3)
    client = make_client(people_store=server.url, request_timeout_ms=2000)
    sent = {"events": [{"event_id": "e", "user_id": "u", "item_id": "item-1"}]}
    assert client.post("/events", json=sent).status_code == 200
    server.process.send_signal(signal.SIGSTOP)
    try:
        answer = client.post("/recommend", json={"user_id": "u"})
        assert (answer.status_code, answer.json()["stored_history"]) == (200, "unavailable")
        assert client.post("/events", json=sent).status_code == 503
        assert client.get("/health/ready").status_code == 200
    finally:
        server.process.send_signal(signal.SIGCONT)
    wait_for(lambda: client.post("/recommend", json={"user_id": "u"}).json()["stored_events"] == 1)
    assert client.post("/events", json=sent).json()["duplicates"] == 1


def test_rankings_by_a_person_of_redis_are_those_of_the_same_history(server: Redis, make_client: Any) -> None:
    client = make_client(people_store=server.url)
    history = [{"item_id": f"item-{k}"} for k in range(3, 15)]
    sent = [{"event_id": f"{k}", "user_id": "u", "timestamp": k, **each} for k, each in enumerate(history)]
    assert client.post("/v1/events", json={"events": sent}).json()["stored"] == 12
    for _ in range(2):
        inline = client.post("/recommend", json={"history": history}).json()
    stored = client.post("/recommend", json={"user_id": "u"}).json()
    assert stored["items"] == inline["items"]
    assert stored["stored_events"] == 12
    assert client.delete("/v1/users/u").json()["events"] == 12
    assert client.get("/v1/users/u").status_code == 404
