"""What happens around every request: its id, its outcome, its log line, and a last net for faults."""

from __future__ import annotations

import logging
import time
import uuid

from starlette.datastructures import MutableHeaders
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from index.history import Task
from server.errors import as_server_error, problem_response
from server.metrics import REJECTIONS, Metrics, outcome

logger = logging.getLogger("server.request")

TASK_PATHS = {"/search": Task.SEARCH, "/recommend": Task.RECOMMENDATION}
QUIET_PATHS = ("/health/live", "/health/ready", "/metrics", "/info", "/docs", "/openapi.json")
ADMIN_PATHS = ("/admin/index/refresh",)
NAMED_PATHS = {*TASK_PATHS, *QUIET_PATHS, *ADMIN_PATHS}
_METHODS = ("GET", "POST", "HEAD", "PUT", "PATCH", "DELETE", "OPTIONS")


class RequestMiddleware:
    """Gives `request.state` a `request_id` and a `started` time (`perf_counter`).

    Plain ASGI, because Starlette's `BaseHTTPMiddleware` hides disconnects.
    """

    def __init__(self, app: ASGIApp, metrics: Metrics) -> None:
        self._app = app
        self._metrics = metrics

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] != "http":
            await self._app(scope, receive, send)
            return
        request_id = uuid.uuid4().hex
        started = time.perf_counter()
        scope["state"] = {**scope.get("state", {}), "request_id": request_id, "started": started}
        status = 0  # not answered yet

        async def send_named(message: Message) -> None:
            nonlocal status
            if message["type"] == "http.response.start":
                status = message["status"]
                MutableHeaders(scope=message)["X-Request-ID"] = request_id
            await send(message)

        try:
            await self._app(scope, receive, send_named)
        except Exception as error:
            logger.error("unexpected error", extra={"request_id": request_id}, exc_info=error)
            if status:  # the answer has begun: all that is left is to break it off
                raise
            await problem_response(as_server_error(error), request_id)(scope, receive, send_named)
        finally:
            self._record(scope, request_id, status or 499, time.perf_counter() - started)

    def _record(self, scope: Scope, request_id: str, status: int, seconds: float) -> None:
        path, method = scope["path"], scope["method"]
        task = TASK_PATHS.get(path) if method == "POST" else None
        if task is not None:
            self._metrics.requests.labels(task.value, outcome(status)).inc()
            self._metrics.request_seconds.labels(task.value).observe(seconds)
            if status in REJECTIONS:
                self._metrics.rejected.labels(REJECTIONS[status]).inc()
        # Neither path nor method is logged as sent: both are the client's text.
        logger.log(
            logging.DEBUG if path in QUIET_PATHS else logging.INFO,
            "request",
            extra={
                "request_id": request_id,
                "method": method if method in _METHODS else "other",
                "path": path if path in NAMED_PATHS else "other",
                "status": status,
                "ms": round(seconds * 1000, 3),
            },
        )
