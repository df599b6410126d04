"""The server process: open the bundle, warm up, listen, and stop without losing a request.

On SIGTERM `/health/ready` answers 503 at once, while other requests are still answered, until the load balancer has
noticed. After `drain_seconds` the listener closes, and the requests in flight are finished. uvicorn itself would close
the listener first. A second signal, or Ctrl-C, skips the wait. A signal that comes earlier ends the process at once.
"""

from __future__ import annotations

import logging
import math
import resource
import signal
import socket
import sys
import time
from contextlib import suppress
from functools import partial
from pathlib import Path
from types import FrameType
from typing import TYPE_CHECKING

import uvicorn
from fastapi import FastAPI
from transformers.utils import logging as transformers_logging

from index.bundle.bundle import Bundle
from index.bundle.manifest import BundleError
from server import stopping
from server.app import create_app
from server.engine.contract import EngineError
from server.engine.process.engine_process import EngineProcess
from server.people.store import StoreRefusedError
from server.runtime import garbage, logs
from server.serving.readiness import Readiness
from server.settings import Settings
from server.telemetry.tracing import TracingError
from server.transport.protocol import TimedProtocol

if TYPE_CHECKING:
    from server.telemetry.spans import Spans

logger = logging.getLogger("server.launch")

EXIT_BAD_BUNDLE = 2


def launch(path: Path, settings: Settings, sockets: list[socket.socket]) -> int:
    """Serve a bundle until a signal stops it; return the exit code. Call it on the main thread.

    path: folder of a bundle, or a link to one.
    sockets: to listen on, already bound.
    """
    try:
        spans = prepare(settings)
    except TracingError as error:
        return _refuse(error)
    try:
        app = open_app(path, settings, spans)
    except (BundleError, EngineError, StoreRefusedError) as error:
        return _refuse(error)
    config = uvicorn.Config(
        app,
        loop="asyncio",  # uvloop may come with an extra, and would be another program than the tested one
        http=partial(  # type: ignore[arg-type]
            TimedProtocol, idle_seconds=settings.idle_seconds, body_seconds=settings.body_seconds
        ),
        ws="none",
        timeout_keep_alive=math.ceil(settings.idle_seconds),
        host=settings.host,
        port=settings.port,
        lifespan="on",
        log_config=None,
        access_log=False,
        server_header=False,
        timeout_graceful_shutdown=settings.shutdown_seconds,
    )
    try:
        DrainingServer(config, app.state.readiness, settings.drain_seconds).run(sockets)
    except SystemExit:
        if app.state.refused is None:
            raise
        return _refuse(app.state.refused)
    finally:
        if spans is not None:
            spans.close()
    logger.info("stopped")
    return 0


def prepare(settings: Settings) -> Spans | None:
    """Set up the logs and the limits of this process; return its spans if requests are traced.

    Raises `TracingError`.
    """
    logs.configure(settings.log_level)
    spans = _open_spans() if settings.tracing == "on" else None
    transformers_logging.disable_progress_bar()
    transformers_logging.disable_default_handler()
    transformers_logging.enable_propagation()
    _raise_descriptor_limit()
    return spans


def open_app(path: Path, settings: Settings, spans: Spans | None) -> FastAPI:
    """Return the application that serves a bundle; its engine starts with it.

    path: folder of a bundle, or a link to one.
    spans: around the requests; None for none.
    Raises `BundleError`, `EngineError`, `StoreRefusedError`.
    """

    def reopen() -> tuple[Bundle, EngineProcess]:
        bundle = Bundle.open(path.resolve())  # resolved now: a link may later point to another bundle
        return bundle, EngineProcess(
            bundle,
            options=settings.engine_options(),
            log_level=settings.log_level,
            stall_seconds=settings.stall_seconds,
        )

    bundle, engine = reopen()
    return create_app(bundle, engine, settings, reopen, None if spans is None else spans.around)


def _open_spans() -> Spans:
    """Return spans that are exported as the `OTEL_*` variables say. Raises `TracingError`."""
    try:
        from server.telemetry import spans  # OpenTelemetry is an extra
    except ModuleNotFoundError as error:
        raise TracingError("GEMS_TRACING=on needs OpenTelemetry: pip install 'gems-sr[otel]'") from error
    return spans.Spans(spans.exporter())


def _refuse(error: Exception) -> int:
    sys.stderr.write(f"error: {' '.join(str(error).split())}\n")  # on one line
    return EXIT_BAD_BUNDLE


def _raise_descriptor_limit() -> None:
    """Raise the limit of open files, and so of connections, to the maximum; the usual default is 1,024."""
    _, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    with suppress(OSError, ValueError):  # macOS allows fewer than it reports
        resource.setrlimit(resource.RLIMIT_NOFILE, (hard, hard))


class DrainingServer(uvicorn.Server):
    """uvicorn's server, with the drain described above."""

    def __init__(self, config: uvicorn.Config, readiness: Readiness, drain_seconds: float) -> None:
        super().__init__(config)
        self._readiness = readiness
        self._drain_seconds = drain_seconds
        self._drained_at: float | None = None  # monotonic

    def handle_exit(self, sig: int, frame: FrameType | None) -> None:
        """Drain or stop on a signal.

        uvicorn's own handler ends the process by the signal in the end; here a clean stop exits with 0.
        """
        if not self.started:
            stopping.stop(sig, frame)
        if self.should_exit:
            self.force_exit = True
        elif sig == signal.SIGTERM and self._drained_at is None:
            self._readiness.stage = "draining"
            self._drained_at = time.monotonic() + self._drain_seconds
        else:
            self.should_exit = True

    async def on_tick(self, counter: int) -> bool:
        if self._drained_at is not None and time.monotonic() >= self._drained_at:
            self.should_exit = True
        return await super().on_tick(counter)

    async def startup(self, sockets: list[socket.socket] | None = None) -> None:
        await super().startup(sockets)
        garbage.settle()
        host, port = self.servers[0].sockets[0].getsockname()[:2]
        logger.info("ready", extra={"url": f"http://{host}:{port}"})
