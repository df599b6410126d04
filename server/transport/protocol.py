"""HTTP/1.1 with deadlines: slow and silent clients are disconnected. uvicorn itself waits for ever."""

from __future__ import annotations

import asyncio
import uuid
from typing import Any

import h11
from uvicorn.protocols.http.h11_impl import H11Protocol

from server.api.errors import PROBLEM_JSON, MalformedHttpError, problem

GRACE_SECONDS = 1.0  # time for the application to answer 408 before the connection is closed


class TimedProtocol(H11Protocol):
    """uvicorn's protocol with two time limits. The time does not start again with each byte.

    idle_seconds: from the connection, or the end of an answer, until the whole head of the next request has arrived.
    body_seconds: from then until the whole body has arrived.
    """

    def __init__(self, *args: Any, idle_seconds: float, body_seconds: float, **kwargs: Any) -> None:
        super().__init__(*args, **kwargs)
        self._idle_seconds = idle_seconds
        self._body_seconds = body_seconds + GRACE_SECONDS
        self._phase = ""
        self._timer: asyncio.TimerHandle | None = None

    def connection_made(self, transport: asyncio.Transport) -> None:  # type: ignore[override]
        super().connection_made(transport)
        self._watch()

    def data_received(self, data: bytes) -> None:
        super().data_received(data)
        self._watch()

    def on_response_complete(self) -> None:
        super().on_response_complete()
        self._phase = ""  # the next request gets the full time
        self._watch()

    def connection_lost(self, exc: Exception | None) -> None:
        super().connection_lost(exc)
        self._enter("closed", None)

    def send_400_response(self, msg: str) -> None:
        """Answer what is no HTTP like every other error, and close the connection. uvicorn sends plain text."""
        request_id = uuid.uuid4().hex
        body = problem(MalformedHttpError(msg), request_id).model_dump_json(exclude_defaults=True).encode()
        headers = [("content-type", PROBLEM_JSON), ("content-length", str(len(body)))]
        headers += [("x-request-id", request_id), ("connection", "close")]
        events: list[h11.Event] = [
            h11.Response(status_code=MalformedHttpError.status, headers=headers),
            h11.Data(body),
            h11.EndOfMessage(),
        ]
        for event in events:
            self.transport.write(self.conn.send(event) or b"")
        self.transport.close()

    def _watch(self) -> None:
        """Start the timer of the current phase, unless it runs already."""
        if self.transport.is_closing():
            self._enter("closing", self._idle_seconds)  # the client may never read the rest
        elif self.cycle is None or self.cycle.response_complete:
            self._enter("head", self._idle_seconds)
        elif self.cycle.more_body:
            self._enter("body", self._body_seconds)
        else:
            self._enter("answer", None)  # the application has its own deadlines

    def _enter(self, phase: str, seconds: float | None) -> None:
        if phase == self._phase:
            return
        self._phase = phase
        if self._timer is not None:
            self._timer.cancel()
        self._timer = self.loop.call_later(seconds, self.transport.abort) if seconds is not None else None
