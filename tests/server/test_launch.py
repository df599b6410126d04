"""`python -m server` as a process, with real sockets and signals."""

from __future__ import annotations

import json
import os
import shutil
import signal
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from functools import partial
from pathlib import Path

import httpx
import psutil
import pytest
import uvicorn
from support.servers import Server, wait_until

from server.command_line import main
from server.launch import DrainingServer
from server.runtime import logs
from server.serving.readiness import Readiness


@pytest.fixture(scope="module")
def copy(tiny_bundle: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A bundle that the tests may damage and repair."""
    return Path(shutil.copytree(tiny_bundle, tmp_path_factory.mktemp("served") / "bundle"))


@pytest.fixture(scope="module")
def server(copy: Path) -> Iterator[Server]:
    """One server for all tests, because its start is slow. The last test ends it."""
    with Server(
        copy, GEMS_DRAIN_SECONDS="0.6", GEMS_MAX_BODY_BYTES="100000", GEMS_MAX_BATCH_SIZE="1"
    ) as started:
        yield started


def test_the_engine_keeps_few_compiled_kernels(server: Server) -> None:
    """A limit of ours: oneDNN's own is 1,024, so that memory would grow for hours."""
    assert psutil.Process(server.engine_pid).environ()["ONEDNN_PRIMITIVE_CACHE_CAPACITY"] == "64"


def test_engine_killed_within_a_batch(server: Server) -> None:
    """Only the requests in flight are answered with 503; the next engine answers those that waited."""
    with httpx.Client(base_url=server.url, timeout=30) as client, ThreadPoolExecutor(4) as threads:
        ask = partial(client.post, "/recommend", json={"limit": 3})
        pid = server.engine_pid
        os.kill(pid, signal.SIGSTOP)  # requests that it gets now are in flight until it is killed
        lost = threads.submit(ask)
        wait_until(lambda: "gems_batch_size_count 1.0" in client.get("/metrics").text)
        later = [threads.submit(ask) for _ in range(3)]
        wait_until(lambda: "gems_queue_depth 3.0" in client.get("/metrics").text)
        os.kill(pid, signal.SIGKILL)
        assert lost.result().status_code == 503
        assert lost.result().json()["type"] == "urn:gems:problem:engine_unavailable"
        assert [each.result().status_code for each in later] == [200, 200, 200]
        assert client.get("/health/ready").status_code == 200
        assert "gems_engine_restarts_total 1.0" in client.get("/metrics").text
    assert server.engine_pid != pid


def test_server_without_an_engine_is_not_ready(server: Server, copy: Path) -> None:
    weights, away = copy / "model.safetensors", copy.parent / "away"
    with httpx.Client(base_url=server.url, timeout=30) as client:
        weights.rename(away)  # no new engine can be started
        os.kill(server.engine_pid, signal.SIGKILL)
        wait_until(lambda: client.get("/health/ready").status_code == 503)
        assert client.get("/health/ready").json()["detail"] == "The server is restarting."
        assert client.get("/health/live").status_code == 200
        assert "gems_engine_up 0.0" in client.get("/metrics").text
        assert client.post("/recommend", json={"timeout_ms": 100}).status_code == 504
        popular = client.post("/recommend", json={"timeout_ms": 100, "fallback": "popularity"})
        assert popular.json()["fallback"] == "cold_start"
        wait_until(lambda: "model.safetensors is missing" in json.dumps(server.lines))
        away.rename(weights)
        wait_until(lambda: client.get("/health/ready").status_code == 200)
        assert client.post("/recommend", json={}).status_code == 200


def test_serves_refuses_drains_and_exits_cleanly(server: Server) -> None:
    with httpx.Client(base_url=server.url, timeout=20) as client:
        history = [{"item_id": "item-1"}, {"item_id": "nowhere"}]
        for path, body in (("/search", {"query": "s3cret garden"}), ("/recommend", {})):
            response = client.post(path, json=body | {"history": history, "limit": 3})
            assert response.status_code == 200
            assert len(response.json()["items"]) == 3
            assert response.json()["dropped"]["unknown_items"] == ["nowhere"]
        assert 'gems_requests_total{outcome="ok",task="search"} 1.0' in client.get("/metrics").text
        assert client.get("/health/ready").status_code == 200
        broken = client.post("/search", content=b"{", headers={"content-type": "application/json"})
        assert broken.status_code == 400
        huge = b'{"query": "' + b"a" * 20_000_000 + b'"}'
        refused = client.post("/search", content=huge, headers={"content-type": "application/json"})
        assert refused.status_code == 413
        assert len(refused.content) < 2048
        # only the engine's process computes: what torch takes is spared in the API's
        loaded = {
            pid: any("libtorch" in each.path for each in psutil.Process(pid).memory_maps())
            for pid in (server.process.pid, server.engine_pid)
        }
        assert loaded == {server.process.pid: False, server.engine_pid: True}

        family = psutil.Process(server.process.pid).children(recursive=True)
        server.process.send_signal(signal.SIGTERM)
        time.sleep(0.1)
        with httpx.Client(base_url=server.url) as late:  # a new connection: the listener is still open
            assert late.get("/health/ready").status_code == 503
            assert late.post("/recommend", json={}).status_code == 200
        assert server.process.wait(20) == 0
        assert not psutil.wait_procs(family, timeout=10)[1]
    server.reader.join(5)
    assert server.lines[-1]["message"] == "stopped"
    assert "s3cret" not in json.dumps(server.lines)


def test_damaged_bundle_is_refused_in_one_line_that_names_the_file(
    tiny_bundle: Path, tmp_path: Path, monkeypatch, capsys
) -> None:
    monkeypatch.setattr(logs, "configure", lambda level: None)  # pytest's own handlers stay
    copy = tmp_path / "damaged"
    shutil.copytree(tiny_bundle, copy)
    weights = bytearray((copy / "model.safetensors").read_bytes())
    weights[-1] ^= 1
    (copy / "model.safetensors").write_bytes(weights)
    assert main([str(copy)]) == 2
    assert main([str(tmp_path / "nowhere")]) == 2
    damaged, missing = capsys.readouterr().err.splitlines()
    assert damaged.startswith("error: ")
    assert "model.safetensors is damaged" in damaged
    assert "there is no folder" in missing


def test_second_signal_or_interrupt_skips_the_drain() -> None:
    def started() -> tuple[DrainingServer, Readiness]:
        readiness = Readiness()
        readiness.stage = "ready"
        server = DrainingServer(uvicorn.Config(lambda: None), readiness, drain_seconds=60)
        server.started = True
        return server, readiness

    server, readiness = started()
    server.handle_exit(signal.SIGTERM, None)
    assert (readiness.status, server.should_exit) == ("draining", False)
    server.handle_exit(signal.SIGTERM, None)
    assert server.should_exit
    assert not server.force_exit
    server.handle_exit(signal.SIGTERM, None)
    assert server.force_exit
    server, _ = started()
    server.handle_exit(signal.SIGINT, None)
    assert server.should_exit
