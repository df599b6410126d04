"""The real thing: `python -m server` as a process, spoken to over sockets, ended by signals."""

from __future__ import annotations

import json
import os
import shutil
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from pathlib import Path

import httpx
import pytest
import uvicorn

from server import logs
from server.__main__ import main
from server.launch import DrainingServer
from server.readiness import Readiness

ROOT = Path(__file__).parents[2]


class Server:
    """A server process on a free port. `lines` holds what it logged so far."""

    def __init__(self, bundle: Path, *arguments: str, **settings: str) -> None:
        self.lines: list[dict[str, object]] = []
        self.url = ""
        self._ready = threading.Event()
        self.process = subprocess.Popen(
            [sys.executable, "-m", "server", str(bundle), "--port", "0", *arguments],
            cwd=ROOT,
            env=os.environ | settings,
            stderr=subprocess.PIPE,
            text=True,
        )
        self._reader = threading.Thread(target=self._read, daemon=True)
        self._reader.start()

    def _read(self) -> None:
        assert self.process.stderr is not None
        for line in self.process.stderr:
            record = json.loads(line)  # every line is JSON
            self.lines.append(record)
            if record["message"] == "ready":
                self.url = record["url"]
                self._ready.set()
        self._ready.set()

    def wait_ready(self) -> None:
        assert self._ready.wait(60)
        assert self.url, self.lines


@pytest.fixture
def server(tiny_bundle: Path) -> Iterator[Server]:
    started = Server(tiny_bundle, "--threads", "1", GEMS_DRAIN_SECONDS="0.6", GEMS_MAX_BODY_BYTES="100000")
    try:
        started.wait_ready()
        yield started
    finally:
        started.process.kill()
        started.process.wait()


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

        server.process.send_signal(signal.SIGTERM)
        time.sleep(0.1)
        with httpx.Client(base_url=server.url) as late:  # a new connection: the listener is still open
            assert late.get("/health/ready").status_code == 503
            assert late.post("/recommend", json={}).status_code == 200
        assert server.process.wait(20) == 0
    server._reader.join(5)
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
    assert "nowhere is not a folder" in missing


def test_second_signal_or_interrupt_skips_the_drain() -> None:
    def started() -> tuple[DrainingServer, Readiness]:
        readiness = Readiness()
        readiness.status = "ready"
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
