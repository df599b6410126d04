"""Swapping versions of the index under load: no failed request, each answer from exactly one version."""

from __future__ import annotations

import shutil
import threading
from collections import Counter
from collections.abc import Iterator
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
from server.engine.contract import HostedEngine
from server.engine.options import EngineOptions
from server.engine.process.engine_process import EngineProcess
from server.engine.torch_backend.engine import TorchEngine
from server.settings import Settings

KEY = "a schlüssel for tests"
ADMIN = {"authorization": f"Bearer {KEY}".encode()}  # a client's UTF-8
NEW = [Item(f"new-{k}", f"Silent Ocean {k}", attributes={"year": 3000}) for k in range(3)]
ITEMS = {f"item-{k}" for k in range(60)}
EVERYTHING = {
    "v1": ITEMS,
    "v2": (ITEMS | {item.item_id for item in NEW}) - {"item-5"},
}


@pytest.fixture
def path(tmp_path: Path) -> Path:
    """A bundle that serves v1, with v2 beside it: three items more, one removed."""
    path = make_bundle(tmp_path / "bundle", codebooks=(4, 5), pool=True)
    update_index(Bundle.open(path), NEW, ["item-5"], item_vectors)
    Versions(path / INDEX).point_to("v1")
    return path


@pytest.fixture
def client(path: Path) -> Iterator[TestClient]:
    bundle = Bundle.open(path)
    settings = Settings(admin_key=f"{KEY}\n", queue_limit=1000)
    with TestClient(create_app(bundle, hosted(TorchEngine.open(bundle)), settings)) as client:
        yield client


def swap(client: TestClient, path: Path, version: str) -> None:
    Versions(path / INDEX).point_to(version)
    answer = client.post("/admin/index/refresh", headers=ADMIN).json()
    assert answer["index_version"] == version
    assert answer["items"] == len(EVERYTHING[version])


def ask(client: TestClient, body: dict[str, object]) -> tuple[str, set[str]]:
    """Return the version and the items of an answer, those of the history among them."""
    response = client.post("/recommend", json=body | {"exclude_history": False})
    assert response.status_code == 200, response.text
    answer = response.json()
    return answer["index_version"], {item["item_id"] for item in answer["items"]}


def test_a_new_version_is_taken_up_and_rolled_back(client: TestClient, path: Path) -> None:
    body: dict[str, object] = {"limit": 100, "history": [{"item_id": "item-5"}, {"item_id": "new-1"}]}
    assert ask(client, body) == ("v1", EVERYTHING["v1"])
    swap(client, path, "v2")
    assert ask(client, body) == ("v2", EVERYTHING["v2"])
    answer = client.post("/recommend", json=body | {"exclude_history": False}).json()
    assert answer["dropped"]["unknown_count"] == 0  # a removed item still counts in a history
    assert answer["fewer_than_limit"] == "the catalogue holds only 62 items"
    only = {"filter": {"year": 3000}, "exclude": ["new-0"], "candidates": ["new-0", "new-1", "item-5"]}
    assert ask(client, only) == ("v2", {"new-1"})
    assert client.get("/info").json()["index_version"] == "v2"
    assert 'index_version="v2"' in client.get("/metrics").text
    swap(client, path, "v1")
    assert ask(client, body) == ("v1", EVERYTHING["v1"])
    assert 'index_version="v2"' not in client.get("/metrics").text


@pytest.mark.parametrize(
    "header", [{}, {"authorization": "Bearer wrong"}, {"authorization": f"Basic {KEY}".encode()}]
)
def test_administration_asks_for_the_key(client: TestClient, header: dict[str, str | bytes]) -> None:
    response = client.post("/admin/index/refresh", headers=header)
    assert response.status_code == 401
    assert response.json()["type"] == "urn:gems:problem:unauthorized"


def test_without_a_key_there_is_no_administration(path: Path) -> None:
    bundle = Bundle.open(path)
    with TestClient(create_app(bundle, hosted(TorchEngine.open(bundle)), Settings())) as client:
        for header in ({}, {"authorization": "Bearer "}, ADMIN):
            assert client.post("/admin/index/refresh", headers=header).status_code == 404


def test_a_damaged_version_is_refused_and_the_old_one_goes_on(client: TestClient, path: Path) -> None:
    Versions(path / INDEX).point_to("v2")
    damaged = path / INDEX / "v2" / "trie" / "code_0.npy"
    damaged.write_bytes(damaged.read_bytes()[:-1])
    response = client.post("/admin/index/refresh", headers=ADMIN)
    assert response.status_code == 409
    assert response.json()["type"] == "urn:gems:problem:index_refused"
    assert ask(client, {"limit": 100}) == ("v1", EVERYTHING["v1"])


def test_versions_that_are_pruned_while_they_are_served_still_answer(client: TestClient, path: Path) -> None:
    """The arrays stay mapped although their files are gone."""
    shutil.rmtree(path / INDEX / "v1")
    assert ask(client, {"limit": 100}) == ("v1", EVERYTHING["v1"])


def swap_under_load(client: TestClient, path: Path, swaps: int) -> Counter[str]:
    """Return answers by version, from four clients that send requests without a pause."""
    seen: Counter[str] = Counter()
    wrong: list[object] = []
    done = threading.Event()

    def load(worker: int) -> None:
        body = {"limit": 100, "history": [{"item_id": f"item-{worker}"}]}
        while not done.is_set():
            try:
                version, items = ask(client, body)
                if items != EVERYTHING[version]:
                    wrong.append((version, sorted(items ^ EVERYTHING[version])))
                seen[version] += 1
            except AssertionError as error:
                wrong.append(str(error))

    workers = [threading.Thread(target=load, args=(k,)) for k in range(4)]
    for worker in workers:
        worker.start()
    for k in range(swaps):
        swap(client, path, ("v2", "v1")[k % 2])
    done.set()
    for worker in workers:
        worker.join()
    assert wrong == []
    return seen


def test_twenty_swaps_under_load(client: TestClient, path: Path) -> None:
    assert set(swap_under_load(client, path, 20)) == {"v1", "v2"}


@pytest.mark.slow
def test_a_thousand_swaps_under_load(client: TestClient, path: Path) -> None:
    seen = swap_under_load(client, path, 1000)
    assert min(seen["v1"], seen["v2"]) > 100


@pytest.fixture
def link(tmp_path: Path) -> Path:
    """The served path: a link to bundle `a` of 60 items, in a folder with `b` of 40 items."""
    for name, items in (("a", 60), ("b", 40)):
        make_bundle(tmp_path / name, items=items)
    link = tmp_path / "served"
    link.symlink_to("a")
    return link


def turn(link: Path, name: str) -> None:
    draft = link.with_name("draft")
    draft.symlink_to(name)
    draft.replace(link)


@pytest.fixture
def bundle_client(link: Path) -> Iterator[TestClient]:
    def reopen() -> tuple[Bundle, HostedEngine]:
        bundle = Bundle.open(link.resolve())
        return bundle, hosted(TorchEngine.open(bundle))

    settings = Settings(admin_key=KEY, queue_limit=1000)
    with TestClient(create_app(*reopen(), settings, reopen)) as client:
        yield client


def swap_bundle(client: TestClient, link: Path, name: str) -> None:
    turn(link, name)
    answer = client.post("/admin/bundle/refresh", headers=ADMIN).json()
    assert answer["bundle_id"] == BUNDLE_IDS[name]
    assert answer["items"] == len(ITEMS_OF[BUNDLE_IDS[name]])


BUNDLE_IDS = {"a": "tiny-llama-60", "b": "tiny-llama-40"}
ITEMS_OF = {f"tiny-llama-{n}": {f"item-{k}" for k in range(n)} for n in (60, 40)}


def test_another_bundle_is_served_and_rolled_back_under_load(bundle_client: TestClient, link: Path) -> None:
    seen: Counter[str] = Counter()
    wrong: list[str] = []
    done = threading.Event()

    def load() -> None:
        while not done.is_set():
            history = [{"item_id": "item-1"}]
            body = {"limit": 100, "history": history, "exclude_history": False}
            response = bundle_client.post("/recommend", json=body)
            answer = response.json()
            if response.status_code != 200:
                wrong.append(response.text)
            elif {item["item_id"] for item in answer["items"]} != ITEMS_OF[answer["bundle_id"]]:
                wrong.append(answer["bundle_id"])
            seen[answer.get("bundle_id")] += 1

    workers = [threading.Thread(target=load) for _ in range(3)]
    for worker in workers:
        worker.start()
    for name in ("b", "a", "b"):
        swap_bundle(bundle_client, link, name)
    done.set()
    for worker in workers:
        worker.join()
    assert wrong == []
    assert set(seen) == set(BUNDLE_IDS.values())
    assert 'bundle_id="tiny-llama-40"' in bundle_client.get("/metrics").text


def test_a_damaged_bundle_is_refused_and_the_old_one_goes_on(bundle_client: TestClient, link: Path) -> None:
    weights = link.with_name("b") / "model.safetensors"
    weights.write_bytes(weights.read_bytes()[:-1])
    turn(link, "b")
    response = bundle_client.post("/admin/bundle/refresh", headers=ADMIN)
    assert response.status_code == 409
    assert response.json()["type"] == "urn:gems:problem:bundle_refused"
    assert bundle_client.get("/info").json()["bundle_id"] == BUNDLE_IDS["a"]
    assert bundle_client.post("/recommend", json={}).status_code == 200


def test_index_and_bundle_are_swapped_in_the_engine_process(path: Path) -> None:
    """The engine has its own process, as in `python -m server`."""

    def reopen() -> tuple[Bundle, HostedEngine]:
        bundle = Bundle.open(path)
        return bundle, EngineProcess(bundle, options=EngineOptions(threads=1))

    with TestClient(create_app(*reopen(), Settings(admin_key=KEY), reopen)) as client:
        body: dict[str, object] = {"limit": 100}
        assert ask(client, body) == ("v1", EVERYTHING["v1"])
        swap(client, path, "v2")
        assert ask(client, body) == ("v2", EVERYTHING["v2"])
        assert client.post("/admin/bundle/refresh", headers=ADMIN).status_code == 200
        assert ask(client, body) == ("v2", EVERYTHING["v2"])
        swap(client, path, "v1")
        assert ask(client, body) == ("v1", EVERYTHING["v1"])
