"""`python -m server` with the vLLM engine, as a process. Run by `make test-vllm`."""

from __future__ import annotations

import os
import re
import signal
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import httpx
import pytest
from starlette.testclient import TestClient
from support.bundles import item_vectors, make_bundle
from support.engines import hosted
from support.servers import Server, wait_until

from index.bundle.bundle import Bundle
from index.bundle.update import update_index
from index.catalogue import Item
from server.app import create_app
from server.engine.torch_backend.engine import TorchEngine
from server.settings import Settings

pytest.importorskip(
    "vllm.version", reason="vLLM is not installed here; 'make test-vllm' has an environment for it"
)
pytestmark = [
    pytest.mark.vllm,
    # Lines of the log that are not JSON.
    pytest.mark.filterwarnings("error::pytest.PytestUnhandledThreadExceptionWarning"),
]

KEY = {"Authorization": "Bearer key"}
HISTORY = {"history": [{"item_id": "item-3"}, {"item_id": "item-40"}]}
QUESTIONS: list[tuple[str, dict[str, Any]]] = [
    ("/search", {"query": "golden river", "limit": 7}),
    ("/search", {"query": "winter", "limit": 5, "filter": {"year": {"gte": 1970}}, **HISTORY}),
    ("/recommend", {"limit": 10, **HISTORY}),
    ("/recommend", {"limit": 100, "beam_width": 100}),
]


@pytest.fixture(scope="module")
def path(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return make_bundle(tmp_path_factory.mktemp("served") / "bundle", hidden=128, codebooks=(4, 5))


@pytest.fixture(scope="module")
def server(path: Path) -> Iterator[Server]:
    with Server(path, "--engine", "vllm", GEMS_CACHE_MIB="256", GEMS_ADMIN_KEY="key") as started:
        yield started
        started.process.terminate()
        assert started.process.wait(30) == 0
        started.reader.join(30)


def answers(client: httpx.Client) -> list[list[str]]:
    """Return the items of the answer to each request."""
    found = []
    for asked, body in QUESTIONS:
        response = client.post(asked, json=body)
        assert response.status_code == 200, response.text
        assert {item["source"] for item in response.json()["items"]} == {"beam"}
        found.append([item["item_id"] for item in response.json()["items"]])
    return found


def cached_tokens(client: httpx.Client) -> float:
    """Return the number of prompt tokens that came from the cache so far."""
    (value,) = re.findall(
        r"^gems_cached_prompt_tokens_total (\S+)", client.get("/metrics").text, re.MULTILINE
    )
    return float(value)


def expected(path: Path) -> list[list[str]]:
    """Return the items from the torch engine."""
    bundle = Bundle.open(path)
    with TestClient(create_app(bundle, hosted(TorchEngine.open(bundle)), Settings())) as client:
        return answers(client)


def test_it_answers_like_the_torch_engine_and_survives_the_kill_of_its_engine(
    server: Server, path: Path
) -> None:
    wanted = expected(path)
    assert [len(items) for items in wanted] == [7, 5, 10, 60]
    with httpx.Client(base_url=server.url, timeout=60) as client:
        assert answers(client) == wanted
        pid = server.engine_pid
        os.kill(pid, signal.SIGKILL)
        wait_until(lambda: server.engine_pid != pid, 60)
        wait_until(lambda: client.get("/health/ready").status_code == 200)
        assert answers(client) == wanted
        assert "gems_engine_restarts_total 1.0" in client.get("/metrics").text


def test_its_answers_say_what_was_cached_and_when_it_was_too_late(server: Server) -> None:
    with httpx.Client(base_url=server.url, timeout=60) as client:
        asked, body = "/recommend", {"history": [{"item_id": f"item-{k}"} for k in range(20)]}
        first = client.post(asked, json=body).json()
        before = cached_tokens(client)
        again = client.post(asked, json=body).json()
        assert first["items"] == again["items"]
        assert again["timings_ms"]["decode"] > 0
        assert again["cached_tokens"] >= 32
        assert cached_tokens(client) - before == again["cached_tokens"]
        late = client.post(asked, json=body | {"timeout_ms": 1})
        assert late.status_code in (429, 504)  # 429 if the last batches took longer


def test_index_and_bundle_are_swapped_while_it_serves(server: Server, path: Path) -> None:
    with httpx.Client(base_url=server.url, timeout=120) as client:
        update_index(Bundle.open(path), [Item("new", "Silent Ocean")], ["item-5"], item_vectors)
        assert client.post("/admin/index/refresh", headers=KEY).status_code == 200
        wanted = expected(path)
        assert "new" in wanted[3]
        assert "item-5" not in wanted[3]
        assert answers(client) == wanted
        pid = server.engine_pid
        assert client.post("/admin/bundle/refresh", headers=KEY).status_code == 200
        assert server.engine_pid != pid
        assert answers(client) == wanted
