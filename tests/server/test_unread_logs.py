"""A server whose log nobody reads answers as before, in all its processes, and says later what is missing."""

from __future__ import annotations

import os
import signal
import socket
import subprocess
import sys
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import httpx
import psutil
import pytest
from prometheus_client.parser import text_string_to_metric_families
from support.paths import ROOT
from support.servers import Server, wait_until

REQUESTS = 2000


def dropped(client: httpx.Client) -> int:
    families = text_string_to_metric_families(client.get("/metrics").text)
    (sample,) = [s for f in families for s in f.samples if s.name == "gems_log_lines_dropped_total"]
    return int(sample.value)


def told(server: Server) -> int:
    """The dropped lines that the log itself reports."""
    return sum(int(str(line.get("dropped", 0))) for line in list(server.lines))


def flood(descriptor: int, mebibytes: int) -> None:
    line = b'{"message": "' + b"x" * 1000 + b'"}\n'
    for _ in range(mebibytes << 10):
        assert os.write(descriptor, line) == len(line)


@pytest.fixture(scope="module")
def server(tiny_bundle: Path) -> Iterator[Server]:
    """One server for all tests, because its start is slow. The last test that uses it ends it."""
    with Server(tiny_bundle, GEMS_LOG_LEVEL="debug", GEMS_DRAIN_SECONDS="0") as started:
        yield started


@pytest.fixture
def client(server: Server) -> Iterator[httpx.Client]:
    """A client of the server, whose log is not read until the test lets it."""
    server.reading.clear()
    with httpx.Client(base_url=server.url, timeout=30) as opened:
        yield opened
    server.reading.set()


def test_two_thousand_requests_are_answered(server: Server, client: httpx.Client) -> None:
    for number in range(REQUESTS):
        ranked = number % 20 == 0
        answer = client.post(
            "/recommend" if ranked else "/search",
            json={"limit": 1, "beam_width": 1} if ranked else {},
            headers={"x-request-id": f"r{number}"},
        )
        assert answer.status_code == (200 if ranked else 422)
    assert dropped(client) > 0
    server.reading.set()
    wait_until(lambda: told(server) == dropped(client))
    assert client.post("/search", json={}, headers={"x-request-id": "later"}).status_code == 422
    wait_until(lambda: server.lines[-1].get("request_id") == "later")
    assert sum("dropped" in line for line in server.lines) == 1
    names = [str(line["request_id"]) for line in server.lines if "request_id" in line]
    before = [name for name in names if name.startswith("r")]
    assert before == [f"r{number}" for number in range(len(before))]  # the oldest, in order, without a hole
    assert REQUESTS / 4 < len(before) < REQUESTS


@pytest.mark.skipif(sys.platform != "linux", reason="writes to the stderr of another process through /proc")
def test_no_process_of_the_server_waits_for_a_reader(server: Server, client: httpx.Client) -> None:
    family = [
        psutil.Process(server.process.pid),
        *psutil.Process(server.process.pid).children(recursive=True),
    ]
    assert len(family) >= 3
    for process in family:
        already = dropped(client)
        stderr = os.open(f"/proc/{process.pid}/fd/2", os.O_WRONLY)
        with ThreadPoolExecutor(1) as thread:
            thread.submit(flood, stderr, 2).result(20)
        os.close(stderr)
        wait_until(lambda already=already: dropped(client) > already)  # type: ignore[misc]
        assert client.post("/recommend", json={"limit": 1}).status_code == 200
    os.kill(server.engine_pid, signal.SIGKILL)  # the next one logs to the same place
    wait_until(lambda: client.post("/recommend", json={"limit": 1}).status_code == 200)
    server.reading.set()
    wait_until(lambda: told(server) == dropped(client))


def test_a_full_pipe_does_not_hold_up_the_end(server: Server, client: httpx.Client) -> None:
    already = dropped(client)
    while dropped(client) == already:
        for _ in range(200):
            client.post("/search", json={})
    family = psutil.Process(server.process.pid).children(recursive=True)
    server.process.send_signal(signal.SIGTERM)
    assert server.process.wait(20) == 0
    assert not psutil.wait_procs(family, timeout=10)[1]


@pytest.mark.parametrize("stderr", ["without a reader", "closed"])
def test_an_unusable_stderr_does_not_matter(tiny_bundle: Path, stderr: str) -> None:
    with socket.create_server(("127.0.0.1", 0)) as free:
        port = free.getsockname()[1]
    reading, writing = os.pipe()
    os.close(reading)
    close = " 2>&-" if stderr == "closed" else ""
    command = f"exec {sys.executable} -m server {tiny_bundle} --port {port} --threads 1{close}"
    process = subprocess.Popen(["sh", "-c", command], cwd=ROOT, stderr=writing)
    os.close(writing)
    try:
        with httpx.Client(base_url=f"http://127.0.0.1:{port}", timeout=30) as client:
            wait_until(lambda: answers(client), 60)
            for _ in range(50):
                assert client.post("/search", json={}).status_code == 422
            assert client.post("/recommend", json={"limit": 1}).status_code == 200
            assert (dropped(client) >= 50) == (
                stderr != "closed"
            )  # what was closed from the start is not wanted
            process.send_signal(signal.SIGTERM)
            assert process.wait(20) == 0
    finally:
        process.kill()


def answers(client: httpx.Client) -> bool:
    try:
        return client.get("/health/ready").status_code == 200
    except httpx.HTTPError:
        return False
