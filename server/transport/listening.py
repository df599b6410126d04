"""Sockets to listen on, bound before a model is loaded: a taken port shows at once, not after the load."""

from __future__ import annotations

import socket


class ListenError(Exception):
    """The host or the port cannot be used; the message says which and what to do."""


def bind(host: str, port: int) -> list[socket.socket]:
    """Bind a socket for each address of a host, as asyncio would; nothing connects before somebody listens.

    host: name or address.
    port: 0 for any free port.
    Raises `ListenError`.
    """
    try:
        found = socket.getaddrinfo(host, port, type=socket.SOCK_STREAM, flags=socket.AI_PASSIVE)
    except (OSError, UnicodeError) as error:
        raise ListenError(f"host {host!r} cannot be resolved ({error}); see --host and GEMS_HOST") from error
    sockets: list[socket.socket] = []
    for family, kind, protocol, _, address in dict.fromkeys(found):
        try:
            sockets.append(_bound(socket.socket(family, kind, protocol), address))
        except OSError as error:
            for each in sockets:
                each.close()
            raise ListenError(
                f"port {port} of {host} cannot be used ({error.strerror}); choose another by --port or GEMS_PORT"
            ) from error
    return sockets


def _bound(listener: socket.socket, address: tuple[object, ...]) -> socket.socket:
    try:
        listener.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)  # a restart needs no pause
        if listener.family == socket.AF_INET6:
            listener.setsockopt(socket.IPPROTO_IPV6, socket.IPV6_V6ONLY, 1)  # IPv4 has a socket of its own
        listener.bind(address)
    except OSError:
        listener.close()
        raise
    return listener
