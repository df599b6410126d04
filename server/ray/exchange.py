"""One HTTP request and its answer as plain values, which travel between the processes of a fleet."""

from __future__ import annotations

import asyncio
from dataclasses import dataclass

from fastapi import Request, Response
from starlette.types import ASGIApp, Message, Scope

REPLICA = b"x-replica"  # header that names, in every answer, the replica that gave it
_NAMED = b"x-request-id"  # Ray's proxy adds it to every answer


@dataclass(frozen=True, slots=True)
class Sent:
    """A request that has arrived whole.

    path: decoded; raw_path: as it was sent. query: without the question mark.
    client: address and port of the sender; None if nobody knows them.
    """

    method: str
    path: str
    raw_path: bytes
    query: bytes
    headers: list[tuple[bytes, bytes]]
    client: tuple[str, int] | None
    body: bytes

    @classmethod
    def of(cls, request: Request, body: bytes) -> Sent:
        """Return the request as values. body: all of it."""
        scope = request.scope
        return cls(
            method=scope["method"],
            path=scope["path"],
            raw_path=scope.get("raw_path") or scope["path"].encode(),
            query=scope["query_string"],
            headers=[(bytes(name), bytes(value)) for name, value in scope["headers"]],
            client=tuple(scope["client"]) if scope.get("client") else None,
            body=body,
        )

    @property
    def scope(self) -> Scope:
        """The request as an ASGI scope."""
        return {
            "type": "http",
            "asgi": {"version": "3.0", "spec_version": "2.3"},
            "http_version": "1.1",
            "method": self.method,
            "scheme": "http",
            "path": self.path,
            "raw_path": self.raw_path,
            "query_string": self.query,
            "root_path": "",
            "headers": self.headers,
            "client": self.client,
            "server": None,
        }


@dataclass(frozen=True, slots=True)
class Answered:
    """The answer to a request, whole. headers: as the application sent them."""

    status: int
    headers: list[tuple[bytes, bytes]]
    body: bytes

    def response(self) -> Response:
        """Return it as a response of Starlette."""
        response = Response(self.body, self.status)
        response.raw_headers = [(name, value) for name, value in self.headers if name.lower() != _NAMED]
        return response


async def ask(app: ASGIApp, sent: Sent) -> Answered:
    """Have an application answer a request. Whoever stops waiting cancels it, as a disconnect would.

    Raises what the application raises.
    """
    start: Message = {"status": 500, "headers": []}
    parts: list[bytes] = []
    unread = True

    async def receive() -> Message:
        nonlocal unread
        if unread:
            unread = False
            return {"type": "http.request", "body": sent.body, "more_body": False}
        await asyncio.Event().wait()  # the disconnect, which comes as a cancellation
        raise AssertionError("nobody sets it")

    async def send(message: Message) -> None:
        nonlocal start
        if message["type"] == "http.response.start":
            start = message
        elif message["type"] == "http.response.body":
            parts.append(message.get("body", b""))

    await app(sent.scope, receive, send)
    headers = [(bytes(name), bytes(value)) for name, value in start["headers"]]
    return Answered(start["status"], headers, b"".join(parts))
