"""OpenTelemetry traces: a span for each ranking request, for each ranking in it, and for each stage of a ranking.

    POST /v1/search                        server span; continues the trace of the request's `traceparent`
    └─ search                              one ranking; a batch has one for each of its entries
       ├─ tokenise, queue, prefill, decode, head, trie, explain

No attribute contains anything that a client wrote. The tracer provider is private, because FastAPI would use a global
provider to trace paths and query strings as the client sent them.
"""

from __future__ import annotations

import os
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from importlib import metadata

from opentelemetry import propagate, trace
from opentelemetry.sdk.resources import SERVICE_NAME, SERVICE_VERSION, Resource
from opentelemetry.sdk.trace import TracerProvider
from opentelemetry.sdk.trace.export import BatchSpanProcessor, SpanExporter
from opentelemetry.trace import SpanKind, StatusCode
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from server.api import paths
from server.api.errors import as_server_error
from server.api.stages import STAGES
from server.telemetry.tracing import LISTENER, Account, TracingError

CLOSE_SECONDS = 3.0  # the exporter itself would retry for longer


def exporter() -> SpanExporter:
    """Return the exporter that `OTEL_TRACES_EXPORTER` and `OTEL_EXPORTER_OTLP_PROTOCOL` name; default: OTLP over HTTP.

    The exporter reads its other settings from the environment itself.
    Raises `TracingError` if it is not installed.
    """
    name = os.environ.get("OTEL_TRACES_EXPORTER") or "otlp"
    if name == "otlp":
        protocol = os.environ.get("OTEL_EXPORTER_OTLP_PROTOCOL") or "http/protobuf"
        name = "otlp_proto_grpc" if protocol == "grpc" else "otlp_proto_http"
    found = metadata.entry_points(group="opentelemetry_traces_exporter", name=name)
    if not found:
        raise TracingError(f"no exporter of traces named {name!r} is installed; see OTEL_TRACES_EXPORTER")
    made: SpanExporter = found[name].load()()
    return made


def _resource() -> Resource:
    """Return the resource that `OTEL_SERVICE_NAME` and `OTEL_RESOURCE_ATTRIBUTES` describe; default name: gems."""
    resource = Resource({SERVICE_VERSION: metadata.version("gems-sr")}).merge(Resource.create())
    if str(resource.attributes[SERVICE_NAME]).startswith("unknown_service"):
        resource = resource.merge(Resource({SERVICE_NAME: "gems"}))
    return resource


class Spans:
    """Make spans, and export them on a background thread."""

    def __init__(self, exporter: SpanExporter) -> None:
        self._provider = TracerProvider(resource=_resource(), shutdown_on_exit=False)
        self._provider.add_span_processor(BatchSpanProcessor(exporter))
        self._tracer = self._provider.get_tracer("gems", metadata.version("gems-sr"))

    def close(self) -> None:
        """Export the remaining spans, for at most `CLOSE_SECONDS`."""
        closing = threading.Thread(target=self._provider.shutdown, daemon=True)
        closing.start()
        closing.join(CLOSE_SECONDS)

    def around(self, app: ASGIApp) -> ASGIApp:
        """Return the application with a span around each ranking request."""

        async def traced(scope: Scope, receive: Receive, send: Send) -> None:
            if scope["type"] != "http" or paths.ranking_kind(scope["method"], scope["path"]) is None:
                await app(scope, receive, send)
                return
            with self._request(scope) as span:

                async def send_traced(message: Message) -> None:
                    if message["type"] == "http.response.start":
                        span.set_attribute("http.response.status_code", message["status"])
                        if message["status"] >= 500:
                            span.set_status(StatusCode.ERROR)
                    await send(message)

                await app(scope, receive, send_traced)

        return traced

    @contextmanager
    def _request(self, scope: Scope) -> Iterator[trace.Span]:
        headers = {name.decode("latin-1"): value.decode("latin-1") for name, value in scope["headers"]}
        attributes = {"http.request.method": scope["method"], "http.route": scope["path"]}
        with self._tracer.start_as_current_span(
            f"{scope['method']} {scope['path']}",
            context=propagate.extract(headers),
            kind=SpanKind.SERVER,
            attributes=attributes,
            record_exception=False,  # its message may contain text of the client
            set_status_on_exception=False,
        ) as span:
            trace_id = trace.format_trace_id(span.get_span_context().trace_id)
            scope["state"] = {**scope.get("state", {}), "trace_id": trace_id}
            listening = LISTENER.set(self)
            try:
                yield span
            finally:
                LISTENER.reset(listening)
                state = scope["state"]
                if "request_id" in state:
                    span.set_attribute("gems.request_id", state["request_id"])
                if "problem" in state:
                    span.set_attribute("error.type", state["problem"])

    @contextmanager
    def ranking(self, task: str, account: Account) -> Iterator[None]:
        """Make a span for a ranking, and at its end the spans of its stages.

        The durations of the stages are measured, their positions are not: they are placed one after the other, although
        head and trie take part in every level. A step of the engine counts for every request that took part in it.
        """
        began = time.time_ns()
        with self._tracer.start_as_current_span(
            task, start_time=began, record_exception=False, set_status_on_exception=False
        ) as span:
            try:
                yield
            except BaseException as error:
                code = as_server_error(error).code if isinstance(error, Exception) else type(error).__name__
                span.set_attribute("error.type", code)
                raise
            finally:
                span.set_attributes({f"gems.{name}": value for name, value in account.facts.items()})
                for stage in STAGES:
                    if stage in account.seconds:
                        ended = began + int(account.seconds[stage] * 1e9)
                        self._tracer.start_span(stage, start_time=began).end(ended)
                        began = ended
