"""The lookup of items by title and by id."""

from __future__ import annotations

from pathlib import Path

import pytest
from starlette.testclient import TestClient
from support.bundles import item_vectors, make_bundle
from support.engines import hosted

from index.bundle.bundle import INDEX, Bundle
from index.bundle.update import update_index
from index.bundle.versions import Versions
from index.catalogue import Item
from server.app import create_app
from server.engine.torch_backend.engine import TorchEngine
from server.routes.items import MAX_FOUND, MAX_IDS, MAX_PREFIX_CHARS
from server.settings import Settings


def ids(client: TestClient, **asked: object) -> list[str]:
    response = client.get("/v1/items", params=asked)
    assert response.status_code == 200, response.text
    return [item["item_id"] for item in response.json()["items"]]


def test_titles_are_found_by_the_beginnings_of_their_words(client: TestClient) -> None:
    answer = client.get("/v1/items", params={"prefix": "sil senor"}).json()
    assert answer == {"items": [{"item_id": "item-14", "title": "Silent Señorita 14"}]}
    assert client.get("/items", params={"prefix": "sil senor"}).json() == answer
    assert ids(client, prefix="silent 3") == ["item-35"]
    assert len(ids(client, prefix="s")) == 10
    assert len(ids(client, prefix="s", limit=3)) == 3
    assert ids(client, prefix="?") == []


def test_items_are_named_by_id(client: TestClient) -> None:
    assert ids(client, id=["item-3", "no-such-item", "item-1", "item-3"]) == ["item-3", "item-1"]


@pytest.mark.parametrize(
    "query",
    [
        "",
        "prefix=",
        "prefix=s3cret&id=s3cret",
        "prefix=s3cret&limit=0",
        f"prefix=s3cret&limit={MAX_FOUND + 1}",
        "prefix=s3cret&limit=s3cret",
        "prefix=s3cret&other=s3cret",
        f"prefix={'s3cret' * (MAX_PREFIX_CHARS // 6 + 1)}",
        f"id={'s3cret' * 100}",
        "id=",
        "&".join(["id=s3cret"] * (MAX_IDS + 1)),
    ],
)
def test_what_is_not_a_lookup_is_refused_without_repeating_it(client: TestClient, query: str) -> None:
    response = client.get(f"/v1/items?{query}")
    assert response.status_code == 422
    assert response.headers["content-type"] == "application/problem+json"
    assert response.json()["type"] == "urn:gems:problem:invalid_request"
    assert response.json()["errors"]
    assert "s3cret" not in response.text


def test_broken_unicode_finds_nothing_and_breaks_nothing(client: TestClient) -> None:
    for query in ("prefix=%ff%fe", "prefix=%ed%a0%80", "id=%00", "prefix=%00"):
        assert client.get(f"/v1/items?{query}").json() == {"items": []}


def test_titles_ask_for_a_key_where_there_are_some(make_client) -> None:
    client = make_client(api_keys="right")
    for path in ("/items", "/v1/items"):
        assert client.get(path, params={"prefix": "s"}).status_code == 401
        answer = client.get(path, params={"prefix": "s"}, headers={"authorization": "Bearer right"})
        assert answer.status_code == 200
    assert client.get("/info").json()["key_required"] is True


def test_titles_are_those_of_the_index_that_is_served(tmp_path: Path) -> None:
    path = make_bundle(tmp_path / "bundle", codebooks=(4, 5))
    update_index(Bundle.open(path), [Item("new", "Čudný Ocean")], ["item-35"], item_vectors)
    Versions(path / INDEX).point_to("v1")
    bundle = Bundle.open(path)
    admin = {"authorization": "Bearer key"}
    with TestClient(
        create_app(bundle, hosted(TorchEngine.open(bundle)), Settings(admin_key="key"))
    ) as client:
        before = (ids(client, prefix="cudny"), ids(client, prefix="silent 3"))
        assert before == ([], ["item-35"])
        Versions(path / INDEX).point_to("v2")
        client.post("/admin/index/refresh", headers=admin)
        assert (ids(client, prefix="cudny"), ids(client, prefix="silent 3")) == (["new"], [])
        assert ids(client, id=["item-35", "new"]) == ["item-35", "new"]  # histories may contain removed items
        Versions(path / INDEX).point_to("v1")
        client.post("/admin/index/refresh", headers=admin)
        assert (ids(client, prefix="cudny"), ids(client, prefix="silent 3")) == before
