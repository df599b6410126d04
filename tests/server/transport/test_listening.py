"""Sockets to listen on: bound for every address of a host, or refused in one line before a model is loaded."""

from __future__ import annotations

import socket
from pathlib import Path

import pytest

from index.bundle.bundle import Bundle
from server.command_line import main
from server.transport.listening import ListenError, bind


def close(sockets: list[socket.socket]) -> None:
    for each in sockets:
        each.close()


def test_a_bound_port_takes_connections_once_somebody_listens() -> None:
    (listener,) = bind("127.0.0.1", 0)
    port = listener.getsockname()[1]
    with pytest.raises(ConnectionRefusedError):
        socket.create_connection(("127.0.0.1", port), 5)
    listener.listen()
    socket.create_connection(("127.0.0.1", port), 5).close()
    listener.close()


def test_a_port_can_be_bound_again_at_once() -> None:
    (first,) = bind("127.0.0.1", 0)
    port = first.getsockname()[1]
    first.listen()
    with socket.create_connection(("127.0.0.1", port)):
        first.close()
    close(bind("127.0.0.1", port))


def test_a_name_is_bound_at_each_of_its_addresses() -> None:
    found = {entry[0] for entry in socket.getaddrinfo("localhost", 0, type=socket.SOCK_STREAM)}
    try:
        sockets = bind("localhost", 0)
    except ListenError:
        pytest.skip("this machine names an address that it does not have")
    assert {each.family for each in sockets} == found
    close(sockets)


@pytest.mark.parametrize("host", ["999.1.1.1", "no such host", "\udc80"])
def test_a_host_that_does_not_exist_is_refused(host: str) -> None:
    with pytest.raises(ListenError, match="GEMS_HOST"):
        bind(host, 0)


def test_a_taken_port_is_refused_before_the_bundle_is_opened(
    tiny_bundle: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(Bundle, "open", lambda path: pytest.fail("the bundle was opened"))
    with socket.create_server(("127.0.0.1", 0)) as other:
        port = other.getsockname()[1]
        assert main([str(tiny_bundle), "--port", str(port)]) == 2
    (line,) = [line for line in capsys.readouterr().err.splitlines() if line.startswith("error")]
    assert f"port {port} of 127.0.0.1 cannot be used" in line
