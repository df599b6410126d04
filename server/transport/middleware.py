"""What happens around every request: its id, its outcome, its log line, and a last net for faults.

Requests that will be refused anyway, for want of a key or of room, are refused here, before their body is read.
"""

from __future__ import annotations

import logging
import time
import uuid
from collections.abc import Callable, Sequence

from starlette.datastructures import Headers, MutableHeaders
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from server.api import paths
from server.api.errors import ServerError, as_server_error, problem_response
from server.telemetry.metrics import REJECTIONS, Metrics, outcome
from server.transport.keys import authorise, bearer

logger = logging.getLogger("server.request")

_METHODS = ("GET", "POST", "HEAD", "PUT", "PATCH", "DELETE", "OPTIONS")


class RequestMiddleware:
    """Gives `request.state` a `request_id` and a `started` time (`perf_counter`). A `trace_id` in it is logged, too.

    admit: raises what any ranking request would be refused with now. keys: of which a request for rankings
    or titles has to name one, if there are any.
    Plain ASGI, because Starlette's `BaseHTTPMiddleware` hides disconnects.
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
        request_id = uuid.uuid4().hex
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
            if self._keys and paths.asks_for_a_key(scope["method"], scope["path"]):
                authorise(bearer(Headers(scope=scope)), self._keys)
            if kind is not None:
                self._admit()
            await self._app(scope, receive, send_named)
        except Exception as error:
            if not isinstance(error, ServerError):
                logger.error("unexpected error", extra={"request_id": request_id}, exc_info=error)
            if status:  # the answer has begun: all that is left is to break it off
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
        # Neither path nor method is logged as sent: both are the client's text.
        logger.log(
            logging.DEBUG if path in paths.QUIET else logging.INFO,
            "request",
            extra={
                **{name: state[name] for name in ("request_id", "trace_id") if name in state},
                "method": method if method in _METHODS else "other",
                "path": path if path in paths.NAMED else "other",
                "status": status,
                "ms": round(seconds * 1000, 3),
            },
        )
