"""More requests than the engine can rank: admitted ones are answered soon, the others are refused at once."""

from __future__ import annotations

import asyncio
import os
import signal
import threading
import time
from collections import Counter
from collections.abc import Iterator
from pathlib import Path

import httpx
import pytest
from support.bundles import make_bundle
from support.engines import hosted
from support.servers import Server, serving

from bench.load import Answered, closed_loop, rate_of, request
from bench.overload import beside_health
from index.bundle.bundle import Bundle
from server.app import create_app
from server.engine.torch_backend.engine import TorchEngine
from server.settings import Settings

HISTORY = [{"item_id": f"item-{k}"} for k in range(40)]
ASK = request("POST", "/v1/recommend", {"history": HISTORY})


def test_a_burst_is_answered_or_refused(bundle: Bundle, engine: TorchEngine) -> None:
    """More requests than there is room for come at once; each is answered or refused."""
    app = create_app(bundle, hosted(engine), Settings(queue_limit=4, max_batch_size=2))
    with serving(app) as port:
        found = asyncio.run(closed_loop(port, [ASK], connections=60, seconds=1.0))
        statuses = Counter(each.status for each in found)
        text = httpx.get(f"http://127.0.0.1:{port}/metrics").text
        late = httpx.post(f"http://127.0.0.1:{port}/recommend", json={})
    assert set(statuses) == {200, 429}
    assert f'gems_requests_total{{outcome="ok",task="recommendation"}} {float(statuses[200])}' in text
    assert f'gems_requests_total{{outcome="rejected",task="recommendation"}} {float(statuses[429])}' in text
    assert late.status_code == 200


@pytest.fixture(scope="module")
def slow_bundle(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A bundle whose model takes tens of milliseconds, so that the engine saturates before the client does."""
    path = tmp_path_factory.mktemp("bundles") / "slow"
    return make_bundle(path, items=2000, hidden=1024, max_tokens=512, max_events=40, pool=True)


@pytest.fixture
def server(slow_bundle: Path) -> Iterator[Server]:
    """A server without prefix cache, because all requests are alike."""
    with Server(slow_bundle, GEMS_DRAIN_SECONDS="1", GEMS_CACHE_MIB="0") as started:
        yield started


@pytest.mark.slow
def test_five_times_the_capacity(server: Server) -> None:
    """Clients do not wait for answers. `bench.overload` has the times."""

    batch = Settings().max_batch_size
    peak = rate_of(asyncio.run(closed_loop(server.port, [ASK], 2 * batch, 13)), 2, 10)
    found, health = asyncio.run(beside_health(server.port, ASK, 5 * peak, 20))
    statuses = Counter(each.status for each in found)
    assert set(statuses) == {200, 429}
    assert statuses[429] > statuses[200]
    assert {each.status for each in health} == {200}
    after = asyncio.run(closed_loop(server.port, [ASK], 2, 3))
    assert {each.status for each in after} == {200}


class Fleet:
    """Two servers, and a load balancer that uses those that are ready."""

    def __init__(self, bundle: Path) -> None:
        self.bundle = bundle
        self.servers = [self._start(), self._start()]

    def _start(self) -> Server:
        return Server(self.bundle, GEMS_LOG_LEVEL="info", GEMS_DRAIN_SECONDS="1").__enter__()

    def restart(self, k: int) -> None:
        """Start a new server, then end the old one."""
        old, self.servers[k] = self.servers[k], self._start()
        old.process.send_signal(signal.SIGTERM)
        assert old.process.wait(30) == 0

    def close(self) -> None:
        for server in self.servers:
            server.__exit__(None, None, None)


def roll(bundle: Path, restarts: int) -> Counter[int]:
    """Return the statuses of the requests during N restarts; each client uses a ready server."""
    fleet = Fleet(bundle)
    statuses: Counter[int] = Counter()
    done = threading.Event()

    def load(worker: int) -> None:
        with httpx.Client(timeout=30) as client:
            while not done.is_set():
                server = fleet.servers[worker % 2]
                try:
                    if client.get(f"{server.url}/health/ready").status_code == 200:
                        statuses[client.post(f"{server.url}/v1/recommend", json={}).status_code] += 1
                except httpx.TransportError:
                    # A balancer checks about every second; in between it may find a closed listener.
                    assert server not in fleet.servers
                time.sleep(0.01)

    workers = [threading.Thread(target=load, args=(k,)) for k in range(4)]
    for worker in workers:
        worker.start()
    try:
        for k in range(restarts):
            fleet.restart(k % 2)
    finally:
        done.set()
        for worker in workers:
            worker.join()
        fleet.close()
    return statuses


@pytest.mark.slow
def test_fifty_rolling_restarts(tiny_bundle: Path) -> None:
    statuses = roll(tiny_bundle, 50)
    assert set(statuses) == {200}
    assert statuses[200] > 500


@pytest.mark.slow
def test_engine_killed_again_and_again(server: Server) -> None:
    """Each loss costs at most the requests in flight, and less than five seconds."""
    batch = Settings().max_batch_size
    kills = 10
    statuses: Counter[int] = Counter()

    async def load() -> list[Answered]:
        return await closed_loop(server.port, [ASK], batch, 40)

    found: list[Answered] = []
    loading = threading.Thread(target=lambda: found.extend(asyncio.run(load())))
    loading.start()
    with httpx.Client(base_url=server.url) as client:
        for _ in range(kills):
            time.sleep(2)
            pid = server.engine_pid
            os.kill(pid, signal.SIGKILL)
            begin = time.monotonic()
            while server.engine_pid == pid or client.get("/health/ready").status_code != 200:
                assert time.monotonic() - begin < 5
                time.sleep(0.01)
    loading.join()
    statuses.update(each.status for each in found)
    assert set(statuses) <= {200, 503}
    assert statuses[503] <= kills * batch
