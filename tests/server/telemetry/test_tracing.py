"""Traces: a span for each request and stage, in the client's trace, without any text of the request."""

from __future__ import annotations

import ast
import http.server
import sys
import threading
from collections import Counter
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import httpx
import pytest
from google.protobuf.message import Message
from opentelemetry.proto.collector.trace.v1.trace_service_pb2 import ExportTraceServiceRequest
from opentelemetry.sdk.trace import ReadableSpan
from opentelemetry.sdk.trace.export.in_memory_span_exporter import InMemorySpanExporter
from support.bundles import make_bundle
from support.engines import FailingEngine, hosted
from support.servers import ROOT, Server, serving, wait_until

from index.bundle.bundle import Bundle
from server import launch
from server.api.stages import STAGES
from server.app import create_app
from server.engine.torch_backend.engine import TorchEngine
from server.settings import Settings
from server.telemetry.spans import Spans

TRACE, PARENT = "0af7651916cd43dd8448eb211c80319c", "b7ad6b7169203331"
TRACEPARENT = {"traceparent": f"00-{TRACE}-{PARENT}-01"}
BEAM = [
    stage for stage in STAGES if stage not in ("history", "pool")
]  # of a request that ranks the beam alone
FAILS = 7  # the limit at which the engine fails


class Traced:
    """A client of a traced server."""

    def __init__(self, url: str, exporter: InMemorySpanExporter) -> None:
        self.client = httpx.Client(base_url=url, timeout=20)
        self.exporter = exporter

    def post(self, path: str, body: Any, **headers: str) -> tuple[httpx.Response, list[ReadableSpan]]:
        """Send a request; return the answer and its spans."""
        self.exporter.clear()
        response = self.client.post(path, json=body, headers=headers)
        wait_until(lambda: any(span.name.startswith("POST ") for span in self.exporter.get_finished_spans()))
        return response, list(self.exporter.get_finished_spans())


@contextmanager
def tracing(bundle: Bundle, engine: TorchEngine, **settings: str) -> Iterator[Traced]:
    exporter = InMemorySpanExporter()
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("OTEL_BSP_SCHEDULE_DELAY", "20")
        spans = Spans(exporter)
    failing = hosted(FailingEngine(engine, FAILS))
    app = create_app(bundle, failing, Settings(root_path="/shop/gems", **settings), traced=spans.around)
    with serving(app) as port:
        yield Traced(f"http://127.0.0.1:{port}", exporter)
    spans.close()


@pytest.fixture(scope="module")
def traced(bundle: Bundle, engine: TorchEngine) -> Iterator[Traced]:
    with tracing(bundle, engine) as found:
        yield found


def tree(spans: list[ReadableSpan]) -> dict[str, Any]:
    """Return the tree of names, {name: {name of child: ...}}, with children in the order of their start."""

    def below(parent: int | None) -> dict[str, Any]:
        children = [span for span in spans if (span.parent.span_id if span.parent else None) == parent]
        children.sort(
            key=lambda span: (span.start_time, STAGES.index(span.name) if span.name in STAGES else 0)
        )
        return {span.name: below(span.context.span_id) for span in children}

    return below(None)


def named(spans: list[ReadableSpan], name: str) -> ReadableSpan:
    (found,) = [span for span in spans if span.name == name]
    return found


def test_every_stage_has_its_span(traced: Traced) -> None:
    history = [{"item_id": "item-1"}, {"item_id": "item-2"}]
    response, spans = traced.post("/v1/search", {"query": "river", "history": history, "explain": True})
    assert response.status_code == 200
    assert tree(spans) == {"POST /v1/search": {"search": {stage: {} for stage in BEAM}}}
    request, ranking = named(spans, "POST /v1/search"), named(spans, "search")
    assert request.attributes["http.response.status_code"] == 200
    assert request.attributes["gems.request_id"] == response.json()["request_id"]
    assert ranking.attributes["gems.history_events"] == 2
    assert ranking.attributes["gems.items"] == len(response.json()["items"])
    for stage in BEAM:
        span = named(spans, stage)
        assert (span.end_time - span.start_time) / 1e6 == pytest.approx(
            response.json()["timings_ms"][stage], abs=2e-3
        )
    assert max(named(spans, stage).end_time for stage in BEAM) <= ranking.end_time <= request.end_time
    assert request.resource.attributes["service.name"] == "gems"


def test_a_ranked_pool_has_its_span(tmp_path: Path) -> None:
    pooled = Bundle.open(make_bundle(tmp_path / "bundle", pool=True))
    with tracing(pooled, TorchEngine.open(pooled)) as traced:
        response, spans = traced.post("/v1/search", {"query": "river", "explain": True})
    assert set(tree(spans)["POST /v1/search"]["search"]) == set(STAGES) - {"history"}
    assert response.json()["timings_ms"]["pool"] > 0


def test_a_stored_history_has_its_span(bundle: Bundle, engine: TorchEngine, tmp_path: Path) -> None:
    with tracing(bundle, engine, people_store=str(tmp_path / "people.db")) as traced:
        response, spans = traced.post("/v1/recommend", {"user_id": "somebody"})
    assert next(iter(tree(spans)["POST /v1/recommend"]["recommendation"])) == "history"
    assert response.json()["timings_ms"]["history"] > 0
    assert "somebody" not in str([span.to_json() for span in spans])


def test_a_batch_has_a_ranking_for_each_entry(traced: Traced) -> None:
    entries = [{"task": "search", "query": "river"}, {"task": "recommendation"}]
    _, spans = traced.post("/batch", {"requests": entries})
    below = tree(spans)["POST /batch"]
    assert set(below) == {"search", "recommendation"}
    assert all(list(stages) == BEAM[:-1] for stages in below.values())


def test_the_clients_trace_goes_on(traced: Traced) -> None:
    _, spans = traced.post("/recommend", {}, **TRACEPARENT)
    assert {f"{span.context.trace_id:032x}" for span in spans} == {TRACE}
    assert f"{named(spans, 'POST /recommend').parent.span_id:016x}" == PARENT
    _, spans = traced.post("/recommend", {}, traceparent="nonsense")
    assert named(spans, "POST /recommend").parent is None


def test_requests_at_the_same_time_keep_their_traces_apart(traced: Traced) -> None:
    traces = [f"{k:032x}" for k in range(1, 9)]
    traced.exporter.clear()
    with ThreadPoolExecutor(8) as pool:
        for each in traces:
            pool.submit(
                traced.client.post, "/recommend", json={}, headers={"traceparent": f"00-{each}-{PARENT}-01"}
            )
    names = Counter({"POST /recommend", "recommendation", *BEAM[:-1]})
    wait_until(lambda: len(traced.exporter.get_finished_spans()) == 8 * names.total())
    for each in traces:
        ours = [
            span for span in traced.exporter.get_finished_spans() if f"{span.context.trace_id:032x}" == each
        ]
        assert Counter(span.name for span in ours) == names


def test_a_trace_that_is_not_sampled_has_no_spans(traced: Traced) -> None:
    traced.client.post("/recommend", json={}, headers={"traceparent": f"00-{TRACE}-{PARENT}-00"})
    _, spans = traced.post("/recommend", {})
    assert TRACE not in {f"{span.context.trace_id:032x}" for span in spans}


@pytest.mark.parametrize(
    ("body", "status", "error"),
    [({"limit": FAILS}, 500, "engine_failed"), ({"limit": 0}, 422, "invalid_request")],
)
def test_errors_are_named(traced: Traced, body: Any, status: int, error: str) -> None:
    _, spans = traced.post("/recommend", body)
    request = named(spans, "POST /recommend")
    assert request.attributes["http.response.status_code"] == status
    assert request.attributes["error.type"] == error
    assert request.status.is_ok == (status < 500)


def test_no_span_holds_what_was_asked(traced: Traced) -> None:
    secret = "s3cret"
    history = [
        {"item_id": secret},
        {"item_id": "item-1", "behaviour": "search", "query": secret},
        {"item_id": "item-3"},
    ]
    asked = {"query": f"river {secret}", "history": history, "exclude": [secret], "explain": True}
    headers = {"authorization": secret, "user-agent": secret, "baggage": f"{secret}={secret}"}
    everything = []
    for path, body in [
        ("/search", asked),
        (f"/search?{secret}={secret}", asked),
        ("/search", asked | {"filter": {"categories": secret}}),
        ("/search", asked | {"filter": {secret: secret}}),
        ("/search", asked | {"limit": FAILS, "fallback": "popularity"}),
        ("/search", asked | {"limit": FAILS}),
        ("/search", asked | {"candidates": [secret]}),
        ("/search", {secret: secret}),
        ("/batch", {"requests": [{"task": "search", **asked}, {"task": secret}]}),
        ("/batch", {"requests": [{"task": "search", **asked}] * 2}),
    ]:
        everything += traced.post(path, body, **headers)[1]
    assert {span.name for span in everything} >= {"POST /search", "POST /batch", "search", *BEAM}
    assert secret not in "".join(span.to_json() for span in everything).lower()
    assert not any(span.events for span in everything)


class Collector(http.server.ThreadingHTTPServer):
    """Receiver of OTLP over HTTP."""

    def __init__(self) -> None:
        super().__init__(("127.0.0.1", 0), _Collect)
        self.received: list[ExportTraceServiceRequest] = []
        threading.Thread(target=self.serve_forever, daemon=True).start()


class _Collect(http.server.BaseHTTPRequestHandler):
    def do_POST(self) -> None:
        message: Message = ExportTraceServiceRequest()
        message.ParseFromString(self.rfile.read(int(self.headers["content-length"])))
        self.server.received.append(message)
        self.send_response(200)
        self.end_headers()

    def log_message(self, *_: object) -> None:
        pass


def test_a_server_exports_what_its_environment_says(tiny_bundle: Path) -> None:
    with Collector() as collector:
        environment = {
            "GEMS_TRACING": "on",
            "GEMS_DRAIN_SECONDS": "0",
            "OTEL_EXPORTER_OTLP_ENDPOINT": f"http://127.0.0.1:{collector.server_port}",
            "OTEL_SERVICE_NAME": "shop",
        }
        with Server(tiny_bundle, **environment) as server:
            answer = httpx.post(
                f"{server.url}/search", json={"query": "river"}, headers=TRACEPARENT, timeout=20
            )
            assert answer.status_code == 200
            server.process.terminate()
            assert server.process.wait(20) == 0  # the remaining spans were sent
            wait_until(lambda: any(line["message"] == "stopped" for line in server.lines))
        resources = [resource for message in collector.received for resource in message.resource_spans]
        assert {
            a.value.string_value for r in resources for a in r.resource.attributes if a.key == "service.name"
        } == {"shop"}
        spans = [span for resource in resources for scope in resource.scope_spans for span in scope.spans]
        assert {span.trace_id.hex() for span in spans} == {TRACE}
        assert {span.name for span in spans} == {"POST /search", "search", *BEAM[:-1]}
        (line,) = [line for line in server.lines if line.get("path") == "/search"]
        assert line["trace_id"] == TRACE
        collector.shutdown()


def test_without_the_extra_the_server_says_what_to_install(
    tiny_bundle: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.delitem(sys.modules, "server.telemetry.spans")
    monkeypatch.delattr("server.telemetry.spans")
    monkeypatch.setitem(sys.modules, "opentelemetry.sdk.trace", None)
    assert launch.launch(tiny_bundle, Settings(tracing="on"), []) == 2
    assert (
        capsys.readouterr().err == "error: GEMS_TRACING=on needs OpenTelemetry: pip install 'gems-sr[otel]'\n"
    )


def test_an_exporter_that_is_not_installed_is_named(
    tiny_bundle: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setenv("OTEL_TRACES_EXPORTER", "carrier-pigeon")
    assert launch.launch(tiny_bundle, Settings(tracing="on"), []) == 2
    assert "'carrier-pigeon'" in capsys.readouterr().err


def test_opentelemetry_is_imported_by_spans_alone() -> None:
    for path in (ROOT / "server").rglob("*.py"):
        text = path.read_text("utf-8")
        imports = [
            ast.unparse(node)
            for node in ast.parse(text).body
            if isinstance(node, ast.Import | ast.ImportFrom)
        ]
        found = [line for line in imports if "opentelemetry" in line or "spans" in line]
        assert bool(found) == (path.name == "spans.py"), f"{path}: {found}"
