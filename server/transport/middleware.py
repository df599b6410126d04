"""The middleware around every request: its id, its metrics, its log line, and the handler of unexpected errors.

A request without a valid key, or one that finds the queue full, is refused here, before its body is read.
"""

from __future__ import annotations

import logging
import re
import time
import uuid
from collections.abc import Callable, Sequence

from starlette.datastructures import Headers, MutableHeaders
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from server.api import paths
from server.api.errors import METHODS, AmbiguousLengthError, ServerError, as_server_error, problem_response
from server.telemetry.metrics import REJECTIONS, Metrics, outcome
from server.transport.keys import authorise, bearer

logger = logging.getLogger("server.request")

_REQUEST_ID = re.compile(r"[A-Za-z0-9._-]{1,64}")  # harmless in logs and headers


class RequestMiddleware:
    """Set `request_id` and `started` of `request.state`, and record metrics and a log line for each request.

    `started` is the time of arrival on the clock of `time.perf_counter`. A `trace_id` in the state is logged, too.
    This is plain ASGI, because Starlette's `BaseHTTPMiddleware` hides disconnects.

    admit: raises an error if any ranking request would be refused now.
    keys: API keys; a ranking request or a lookup must name one of them. Empty: no key is required.
    """

    def __init__(
        self, app: ASGIApp, metrics: Metrics, admit: Callable[[], None], keys: Sequence[str]
    ) -> None:
        self._app = app
        self._metrics = metrics
        self._admit = admit
        self._keys = keys

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] != "http":
            await self._app(scope, receive, send)
            return
        headers = Headers(scope=scope)
        request_id = _request_id(headers)
        started = time.perf_counter()
        kind = paths.ranking_kind(scope["method"], scope["path"])
        scope["state"] = {**scope.get("state", {}), "request_id": request_id, "started": started}
        status = 0  # not answered yet

        async def send_named(message: Message) -> None:
            nonlocal status
            if message["type"] == "http.response.start":
                status = message["status"]
                MutableHeaders(scope=message)["X-Request-ID"] = request_id
            await send(message)

        try:
            if "content-length" in headers and "transfer-encoding" in headers:
                # RFC 9112, section 6.3: a proxy may see the next request elsewhere than we do.
                raise AmbiguousLengthError(
                    "Send either Content-Length or Transfer-Encoding.", headers={"Connection": "close"}
                )
            if self._keys and paths.asks_for_a_key(scope["method"], scope["path"]):
                authorise(bearer(headers), self._keys)
            if kind is not None:
                self._admit()
            await self._app(scope, receive, send_named)
        except Exception as error:
            if not isinstance(error, ServerError):
                logger.error("unexpected error", extra={"request_id": request_id}, exc_info=error)
            if status:  # the answer has begun and can only be broken off
                raise
            known = as_server_error(error)
            scope["state"]["problem"] = known.code
            await problem_response(known, request_id)(scope, receive, send_named)
        finally:
            self._record(scope, kind, status or 499, time.perf_counter() - started)

    def _record(self, scope: Scope, kind: str | None, status: int, seconds: float) -> None:
        path, method, state = scope["path"], scope["method"], scope["state"]
        if kind is not None:
            self._metrics.requests.labels(kind, outcome(status)).inc()
            self._metrics.request_seconds.labels(kind).observe(seconds)
            if state.get("problem") in REJECTIONS:
                self._metrics.rejected.labels(state["problem"]).inc()
        # The client chooses the method, so only known ones are logged.
        logger.log(
            logging.DEBUG if path in paths.QUIET else logging.INFO,
            "request",
            extra={
                **{name: state[name] for name in ("request_id", "trace_id") if name in state},
                "method": method if method in METHODS else "other",
                "path": paths.logged(path),
                "status": status,
                "ms": round(seconds * 1000, 3),
            },
        )


def _request_id(headers: Headers) -> str:
    """Return the client's name for the request if it is harmless, else a new one."""
    given = headers.get("x-request-id", "")
    return given if _REQUEST_ID.fullmatch(given) else uuid.uuid4().hex
