"""Rankings of a pool by a real server application: words, new items, relevance, and the beam alone beside it."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from starlette.testclient import TestClient
from support.bundles import item_vectors, make_bundle
from support.engines import hosted
from support.pools import WEIGHTS

from index.bundle.bundle import Bundle
from index.bundle.update import update_index
from index.catalogue import Item
from index.sequence.events import Event
from server.app import create_app
from server.engine.contract import RankRequest
from server.engine.torch_backend.engine import TorchEngine
from server.settings import Settings

HISTORY = [{"item_id": "item-3"}, {"item_id": "item-11"}]


@pytest.fixture(scope="module")
def pooled(tmp_path_factory: pytest.TempPathFactory) -> Bundle:
    return Bundle.open(make_bundle(tmp_path_factory.mktemp("pooled") / "bundle", pool=True))


@pytest.fixture(scope="module")
def pooled_engine(pooled: Bundle) -> TorchEngine:
    return TorchEngine.open(pooled)


@pytest.fixture(scope="module")
def pool_client(pooled: Bundle, pooled_engine: TorchEngine) -> Iterator[TestClient]:
    with TestClient(create_app(pooled, hosted(pooled_engine), Settings())) as started:
        yield started


def search(client: TestClient, query: str, **body: Any) -> dict[str, Any]:
    answer = client.post("/search", json={"query": query, "history": HISTORY} | body)
    assert answer.status_code == 200, answer.text
    found: dict[str, Any] = answer.json()
    return found


def test_titles_and_ids_come_first_as_they_are_typed(pool_client: TestClient, pooled: Bundle) -> None:
    for row in (0, 17, 59):
        item = pooled.index.catalogue[row]
        for query in (item.title.lower(), item.title.upper(), item.item_id):
            first = search(pool_client, query)["items"][0]
            assert first["item_id"] == item.item_id, query


def test_the_beam_alone_is_the_answer_of_a_bundle_without_a_pool(
    pool_client: TestClient, client: TestClient
) -> None:
    for query in ("silent river", "comedy"):
        body = {"query": query, "history": HISTORY, "limit": 20}
        without = client.post("/search", json=body).json()
        alone = search(pool_client, query, limit=20, ranking="beam")
        assert alone["ranking"] == without["ranking"] == "beam"
        assert [i["item_id"] for i in alone["items"]] == [i["item_id"] for i in without["items"]]
        assert {i["source"] for i in alone["items"]} == {"beam"}
        assert {i["relevance"] for i in alone["items"]} == {None}


def test_each_item_says_where_it_came_from(pool_client: TestClient) -> None:
    answer = search(pool_client, "silent letter", beam_width=1, limit=8)
    sources = {item["item_id"]: item["source"] for item in answer["items"]}
    assert answer["ranking"] == "pool"
    assert sources["item-5"] == "query_log"
    assert "lexical" in sources.values()
    text = pool_client.get("/metrics").text
    assert 'gems_items_total{source="query_log"}' in text


def test_what_followed_the_history_is_recommended(pool_client: TestClient) -> None:
    body = {"history": HISTORY, "beam_width": 1, "limit": 8, "explain": True}
    answer = pool_client.post("/recommend", json=body).json()
    sources = {item["item_id"]: item["source"] for item in answer["items"]}
    assert sources["item-20"] == sources["item-30"] == "transitions"
    assert 'gems_items_total{source="transitions"}' in pool_client.get("/metrics").text
    only = pool_client.post("/recommend", json=body | {"candidates": ["item-20", "item-40"]}).json()
    assert {item["item_id"] for item in only["items"]} == {"item-20", "item-40"}
    assert only["items"][0]["item_id"] == "item-20"
    assert only["explanation"]["signals"]["transitions"] > 0
    without = pool_client.post("/recommend", json=body | {"history": HISTORY[:1]}).json()
    assert "transitions" not in {item["source"] for item in without["items"]}


def test_relevance_falls_with_the_rank_and_cuts_the_answer(pool_client: TestClient) -> None:
    whole = search(pool_client, "silent machine", limit=30)
    shares = [item["relevance"] for item in whole["items"]]
    assert shares == sorted(shares, reverse=True)
    assert 0 < sum(shares) <= 1 + 1e-6
    least = shares[4]
    cut = search(pool_client, "silent machine", limit=30, min_relevance=least)
    assert [item["item_id"] for item in cut["items"]] == [item["item_id"] for item in whole["items"][:5]]
    assert cut["fewer_than_limit"] == "min_relevance leaves out 25 items"
    nothing = search(pool_client, "silent machine", min_relevance=1)
    assert nothing["items"] == []


def test_unknown_words_make_everything_less_relevant(pool_client: TestClient) -> None:
    known = search(pool_client, "silent")["items"][0]["relevance"]
    unknown = search(pool_client, "qqqqq wwwww zzzzz")["items"][0]["relevance"]
    assert unknown < known / 2


def test_the_explanation_adds_up_to_the_score(pool_client: TestClient) -> None:
    answer = search(pool_client, "silent river", explain=True)
    signals = answer["explanation"]["signals"]
    assert sum(signals.values()) == pytest.approx(answer["items"][0]["score"], abs=1e-6)
    assert signals["all_words"] == WEIGHTS["all_words"]
    assert signals["fresh"] == 0
    assert len(answer["explanation"]["history"]) == 2


def test_filters_exclusions_and_candidates_hold_for_every_source(
    pool_client: TestClient, pooled: Bundle
) -> None:
    title = pooled.index.catalogue[5].title
    asked: list[tuple[dict[str, Any], set[str]]] = [
        ({"filter": {"categories": ["Comedy"]}}, {f"item-{k}" for k in range(1, 60, 5)}),
        ({"exclude": ["item-5"]}, {f"item-{k}" for k in range(60)} - {"item-5"}),
        ({"candidates": ["item-8", "item-9"]}, {"item-8", "item-9"}),
        ({"exclude_history": True}, {f"item-{k}" for k in range(60)} - {"item-3", "item-11"}),
    ]
    for body, allowed in asked:
        for query in (title, "silent letter", "drama"):
            found = {item["item_id"] for item in search(pool_client, query, limit=60, **body)["items"]}
            assert found
            assert found <= allowed


def test_recommendations_are_ranked_in_a_pool_too(pool_client: TestClient) -> None:
    answer = pool_client.post("/recommend", json={"history": HISTORY}).json()
    assert answer["ranking"] == "pool"
    assert len(answer["items"]) == 10


def test_a_bundle_without_weights_says_so(client: TestClient, pool_client: TestClient) -> None:
    for body in ({"ranking": "pool"}, {"min_relevance": 0.1}):
        answer = client.post("/recommend", json=body)
        assert answer.status_code == 422
        assert answer.json()["errors"][0]["where"] == f"body.{next(iter(body))}"
    assert client.post("/recommend", json={"ranking": "beam", "min_relevance": 0.1}).status_code == 422
    assert client.get("/info").json()["ranking"] == "beam"
    info = pool_client.get("/info").json()
    assert info["ranking"] == "pool"
    assert info["min_relevance"] == {"search": 0.01, "recommendation": 0.01}


@pytest.mark.parametrize("scheme", [{"atomic": True}, {"codebooks": (8, 8)}, {"spelling": 12}], ids=str)
def test_an_item_that_is_added_is_found_at_once(scheme: dict[str, Any], tmp_path: Path) -> None:
    path = make_bundle(tmp_path / "bundle", pool=True, **scheme)
    bundle = Bundle.open(path)
    added = [
        Item("SKU-77/x", "Amber Lighthouse", categories=("Drama",)),
        Item("new-2", "Amber Harbour", categories=("Comedy",)),
    ]
    update_index(bundle, added, [], item_vectors)
    bundle = Bundle.open(path)
    with TestClient(create_app(bundle, hosted(TorchEngine.open(bundle)), Settings())) as client:
        for query in ("amber lighthouse", "sku-77/X", "lighthouse"):
            first = search(client, query)["items"][0]
            assert (first["item_id"], first["source"]) == ("SKU-77/x", "fresh"), query
        both = [item["item_id"] for item in search(client, "amber")["items"]]
        assert set(both[:2]) == {"SKU-77/x", "new-2"}
        explanation = search(client, "amber lighthouse", explain=True)["explanation"]
        assert explanation["item_id"] == "SKU-77/x"
        assert explanation["signals"]["fresh_exact_title"] > 0
        assert (explanation["history"], explanation["unexplained"]) == ([], 2)
        answer = client.post("/recommend", json={"history": [{"item_id": "SKU-77/x"}], "limit": 60}).json()
        assert len(answer["items"]) == 60


def test_a_new_item_without_a_word_in_common_is_found_by_its_vector(tmp_path: Path) -> None:
    path = make_bundle(tmp_path / "bundle", pool=True, codebooks=(8, 8))
    added = [Item(f"new-{k}", f"xyz{k} qqq{k}") for k in range(100)]
    update_index(Bundle.open(path), added, [], item_vectors)
    bundle = Bundle.open(path)
    engine = TorchEngine.open(bundle)
    dense = bundle.index.pool.dense  # type: ignore[union-attr]
    assert dense is not None
    with TestClient(create_app(bundle, hosted(engine), Settings())) as client:
        for exclude in ([], ["new-3", "new-17", "new-50"]):
            body = {"history": HISTORY, "limit": 30, "exclude": exclude, "beam_width": 30}
            items = client.post("/recommend", json=body).json()["items"]
            found = [item["item_id"] for item in items if item["source"] == "dense"]
            prompt = bundle.encoder.prompt([Event(3), Event(11)]).ids
            state = engine.rank([RankRequest(prompt, 1, 1, state=True)])[0].state
            rows = [60 + k for k in range(100) if f"new-{k}" not in exclude]
            scores = dense.scores(state, np.array(rows))
            nearest = [f"new-{rows[k] - 60}" for k in np.argsort(-scores)[:8]]
            assert found
            assert set(found) <= set(nearest)


def test_new_items_of_one_identifier_take_no_place_of_others(tmp_path: Path) -> None:
    """Atomic identifiers: ten new items share that of each of three known ones."""
    path = make_bundle(tmp_path / "bundle", pool=True, atomic=True)
    bundle = Bundle.open(path)
    titles = [bundle.index.catalogue[row].title for row in (0, 20, 40)]
    added = [Item(f"new-{title}-{k}", title) for title in titles for k in range(10)]
    update_index(bundle, added, [], item_vectors)
    bundle = Bundle.open(path)
    engine, codes = TorchEngine.open(bundle), bundle.index.trie.codes()
    crowded = False
    for row in range(10):
        prompt = bundle.encoder.prompt([Event(row)]).ids
        few, all_ = engine.rank([RankRequest(prompt, 8, 8), RankRequest(prompt, 8, 8, siblings=30)])
        crowded |= len(np.unique(codes[few.items])) < 8
        assert len(np.unique(codes[all_.items])) == 8
        assert all_.items[:8] == few.items
    assert crowded


def test_items_newer_than_the_model_are_no_part_of_its_prompt(tmp_path: Path) -> None:
    """A new item has the code of another one, if one code names an item: in a history it would mean that one."""
    bundle = Bundle.open(make_bundle(tmp_path / "bundle", pool=True, atomic=True))
    update_index(bundle, [Item("new", "Silent Ocean")], [], item_vectors)
    bundle = Bundle.open(bundle.path)
    with TestClient(create_app(bundle, hosted(TorchEngine.open(bundle)), Settings())) as client:
        asked = {
            "history": [*HISTORY, *[{"item_id": "new"}] * 60],
            "ranking": "beam",
            "exclude_history": False,
        }
        answer = client.post("/recommend", json=asked | {"explain": True}).json()
        plain = client.post("/recommend", json=asked | {"history": HISTORY}).json()
        assert answer["items"] == plain["items"]
        assert (answer["dropped"]["new_events"], answer["dropped"]["old_events"]) == (60, 0)
        assert sorted(each["position"] for each in answer["explanation"]["history"]) == [0, 1]
        excluding = client.post("/recommend", json=asked | {"exclude_history": True, "limit": 61}).json()
        assert "new" not in {item["item_id"] for item in excluding["items"]}
        only = client.post("/recommend", json=asked | {"history": [{"item_id": "new"}]}).json()
        assert only["items"] == client.post("/recommend", json=asked | {"history": []}).json()["items"]
