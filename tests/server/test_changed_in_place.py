"""Files of the served bundle that are changed in place: the API goes on, and an engine that is lost is replaced."""

from __future__ import annotations

import json
import os
import shutil
from collections.abc import Iterator
from pathlib import Path

import httpx
import psutil
import pytest
from support.bundles import make_bundle
from support.servers import Server, wait_until

WEIGHTS = "model.safetensors"


@pytest.fixture(scope="module")
def whole(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return make_bundle(tmp_path_factory.mktemp("whole") / "bundle", codebooks=(4, 5))


@pytest.fixture(scope="module")
def copy(whole: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    return Path(shutil.copytree(whole, tmp_path_factory.mktemp("served") / "bundle"))


@pytest.fixture(scope="module")
def server(copy: Path) -> Iterator[Server]:
    with Server(copy, GEMS_FALLBACK="popularity", GEMS_ADMIN_KEY="key") as server:
        yield server


def mapped(pid: int, folder: Path) -> set[str]:
    """Return the files of a folder that a process has mapped into its memory."""
    maps = (each.path for each in psutil.Process(pid).memory_maps(grouped=False))
    return {str(Path(path).relative_to(folder)) for path in maps if path.startswith(f"{folder}/")}


def files(folder: Path) -> list[Path]:
    return sorted(path.relative_to(folder) for path in folder.rglob("*") if path.is_file())


def ask(client: httpx.Client) -> None:
    """Ask for all that is read from the files of a bundle."""
    restricted = {"filter": {"year": {"gte": 1960}, "categories": "Drama"}, "exclude": ["item-5"]}
    for path, body in (
        ("/search", {"query": "golden river", "history": [{"item_id": "item-1"}], **restricted}),
        ("/recommend", {"limit": 60, "fallback": "none"}),
        ("/recommend", {"fallback": "popularity"}),
    ):
        response = client.post(path, json=body)
        assert response.status_code == 200, response.text
        assert response.json()["items"]
    assert client.get("/items", params={"prefix": "gold"}).json()["items"]
    assert client.get("/info").status_code == 200
    assert client.get("/metrics").status_code == 200


def test_the_api_maps_no_file_of_the_bundle_and_the_engine_none_of_its_index(
    server: Server, copy: Path
) -> None:
    with httpx.Client(base_url=server.url, timeout=30) as client:
        ask(client)
    assert mapped(server.process.pid, copy) == set()
    assert mapped(server.engine_pid, copy) <= {WEIGHTS}


def test_every_file_is_cut_short_under_a_running_server(server: Server, copy: Path, whole: Path) -> None:
    with httpx.Client(base_url=server.url, timeout=30) as client:
        for name in files(copy):
            if name.name == WEIGHTS:
                continue
            os.truncate(copy / name, 0)
            ask(client)
        assert (
            client.post("/admin/bundle/refresh", headers={"authorization": "Bearer key"}).status_code == 409
        )
        assert client.post("/admin/index/refresh", headers={"authorization": "Bearer key"}).status_code == 409
        ask(client)
    assert server.process.poll() is None
    assert not [line for line in server.lines if line["message"] == "the engine's process ended"]
    shutil.copytree(whole, copy, dirs_exist_ok=True)


def test_weights_that_are_cut_short_cost_the_engine_at_most(server: Server, copy: Path, whole: Path) -> None:
    """The engine may be lost by them (SIGBUS); the next one starts as soon as they are whole again."""
    pid = server.engine_pid
    with httpx.Client(base_url=server.url, timeout=30) as client:
        os.truncate(copy / WEIGHTS, 0)
        for number in range(20):  # prompts that are in no cache
            client.post("/search", json={"query": f"river {number}", "timeout_ms": 2000})
            assert client.get("/health/live").status_code == 200
        if not psutil.pid_exists(pid) or psutil.Process(pid).status() == psutil.STATUS_ZOMBIE:
            wait_until(lambda: "SIGBUS" in json.dumps(server.lines))
            wait_until(lambda: f"{WEIGHTS} is damaged" in json.dumps(server.lines))
            shutil.copy2(whole / WEIGHTS, copy / WEIGHTS)
            wait_until(lambda: client.get("/health/ready").status_code == 200)
        shutil.copy2(whole / WEIGHTS, copy / WEIGHTS)
        ask(client)
    assert server.process.poll() is None
