"""Connections that send nothing, or too slowly, are closed while honest requests go on."""

from __future__ import annotations

import json
import resource
import socket
import time
from collections.abc import Iterator
from pathlib import Path

import httpx
import numpy as np
import pytest
from support.servers import Server

HEAD = b"POST /v1/recommend HTTP/1.1\r\nHost: localhost\r\nContent-Type: application/json\r\n"
STARTS = {
    "idle": b"",
    "half a head": HEAD,
    "half a body": HEAD + b"Content-Length: 100\r\n\r\n" + b'{"limit":',
}
AFTER_AN_ANSWER = b"GET /health/live HTTP/1.1\r\nHost: localhost\r\n\r\nGET /health"


@pytest.fixture(scope="module")
def server(tiny_bundle: Path) -> Iterator[Server]:
    with Server(tiny_bundle, GEMS_IDLE_SECONDS="1", GEMS_BODY_SECONDS="1.5") as started:
        yield started


def connect(server: Server, start: bytes) -> socket.socket:
    connection = socket.create_connection(("127.0.0.1", server.port))
    connection.sendall(start)
    return connection


def said_until_closed(connection: socket.socket, seconds: float) -> bytes:
    """Return the bytes that the server sent before it closed. Fails if it does not close in time."""
    end = time.monotonic() + seconds
    said = b""
    while True:
        connection.settimeout(max(0.01, end - time.monotonic()))
        try:
            part = connection.recv(65536)
        except ConnectionResetError:
            return said
        if not part:
            return said
        said += part


def drip(connection: socket.socket) -> None:
    """Send single bytes for ten seconds."""
    for _ in range(200):
        connection.sendall(b"a")
        time.sleep(0.05)


@pytest.mark.parametrize("start", [*STARTS.values(), AFTER_AN_ANSWER], ids=[*STARTS, "half a head later"])
def test_a_slow_connection_is_closed(server: Server, start: bytes) -> None:
    with connect(server, start) as connection:
        said = said_until_closed(connection, 10)
    if start == STARTS["half a body"]:
        assert b" 408 " in said.splitlines()[0]
        assert b"urn:gems:problem:body_timeout" in said
        assert len(said) < 2048


def test_drips_do_not_keep_a_connection_open(server: Server) -> None:
    for start in (HEAD, HEAD + b"Content-Length: 100000\r\n\r\n"):
        with connect(server, start) as connection, pytest.raises((BrokenPipeError, ConnectionResetError)):
            drip(connection)


def test_honest_connections_are_kept(server: Server) -> None:
    with httpx.Client(base_url=server.url) as client:
        for _ in range(5):
            assert client.post("/recommend", json={}).status_code == 200
            time.sleep(0.4)  # together longer than any of the limits


def besiege(server: Server, each: int, requests: int) -> tuple[list[float], list[float]]:
    """Return the latencies of honest requests in seconds, without and with N slow connections of each kind.

    The slow connections have to be closed within 10 s.
    """
    with httpx.Client(base_url=server.url, timeout=30) as client:

        def honest() -> list[float]:
            seconds = []
            for _ in range(requests):
                begin = time.perf_counter()
                assert client.post("/recommend", json={}).status_code == 200
                seconds.append(time.perf_counter() - begin)
            return seconds

        honest()
        before = honest()
        begin = time.monotonic()
        slow = [connect(server, start) for start in STARTS.values() for _ in range(each)]
        during = honest()
        for connection in slow:
            said_until_closed(connection, begin + 10 - time.monotonic())
            connection.close()
        return before, during


def test_a_siege_of_ninety(server: Server) -> None:
    besiege(server, each=30, requests=20)


@pytest.mark.slow
def test_a_siege_of_fifteen_hundred(tiny_bundle: Path) -> None:
    resource.setrlimit(resource.RLIMIT_NOFILE, (resource.getrlimit(resource.RLIMIT_NOFILE)[1],) * 2)
    with Server(tiny_bundle) as server:
        before, during = besiege(server, each=500, requests=300)
    assert np.quantile(during, 0.99) <= 1.2 * np.quantile(before, 0.99)


def test_a_request_with_two_lengths_is_refused_and_its_connection_closed(server: Server) -> None:
    """RFC 9112, section 6.3: else a proxy and the server may disagree where the next request begins."""
    smuggled = b"GET /info HTTP/1.1\r\nHost: localhost\r\n\r\n"
    start = HEAD + b"Content-Length: 5\r\nTransfer-Encoding: chunked\r\n\r\n0\r\n\r\n" + smuggled
    with connect(server, start) as connection:
        said = said_until_closed(connection, 10)
    assert b" 400 " in said.splitlines()[0]
    assert b"urn:gems:problem:ambiguous_length" in said
    assert said.count(b"HTTP/1.1") == 1


@pytest.mark.parametrize(
    "said", [b"\x16\x03\x01\x00\xa5\r\n\r\n", b"GET /\r\n\r\n", b"GET / HTTP/1.1\r\n: x\r\n\r\n"]
)
def test_what_is_no_http_is_answered_with_a_problem(server: Server, said: bytes) -> None:
    with connect(server, said) as connection:
        answer = said_until_closed(connection, 5)
    head, _, body = answer.partition(b"\r\n\r\n")
    assert b" 400 " in head.splitlines()[0]
    assert b"content-type: application/problem+json" in head.lower()
    problem = json.loads(body)
    assert problem["type"] == "urn:gems:problem:malformed_http"
    assert f"x-request-id: {problem['request_id']}".encode() in head.lower()


def test_a_target_may_name_a_host(server: Server) -> None:
    """RFC 9112, section 3.2.2: a server accepts the absolute form."""
    for target, status in (
        ("/info", b"200"),
        ("http://gems.example/info?a=1", b"200"),
        ("HTTPS://x/nothing", b"404"),
    ):
        request = f"GET {target} HTTP/1.1\r\nHost: gems.example\r\nConnection: close\r\n\r\n"
        with connect(server, request.encode()) as connection:
            assert said_until_closed(connection, 5).split()[1] == status
