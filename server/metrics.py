"""What Prometheus scrapes: `gems_` histograms and counters with small, fixed label sets.

Every application has a registry of its own, so that several can live in one process.
No label ever holds anything that a client sent.
"""

from __future__ import annotations

from collections.abc import Callable

from prometheus_client import CollectorRegistry, Counter, Gauge, Histogram, generate_latest

from index.bundle import Bundle
from index.history import Task

STAGES = ("queue", "tokenise", "prefill", "decode", "head", "trie")
OUTCOMES = ("ok", "invalid", "rejected", "cancelled", "unavailable", "timeout", "error")
REJECTIONS = {413: "body_too_large", 429: "queue_full", 503: "not_ready", 504: "deadline_exceeded"}

_SECONDS = (0.001, 0.0025, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1.0, 2.5, 5.0, 10.0, 30.0)


def outcome(status: int) -> str:
    """The outcome label of a response status."""
    if status < 400:
        return "ok"
    named = {429: "rejected", 499: "cancelled", 503: "unavailable", 504: "timeout"}
    return named.get(status, "invalid" if status < 500 else "error")


class Metrics:
    """The instruments of one application. `docs/api.md` describes each; a test keeps it so."""

    def __init__(self) -> None:
        self.registry = registry = CollectorRegistry()
        self.requests = Counter(
            "gems_requests_total", "Answered requests", ["task", "outcome"], registry=registry
        )
        self.request_seconds = Histogram(
            "gems_request_seconds",
            "Time from the first byte of a request to its answer",
            ["task"],
            buckets=_SECONDS,
            registry=registry,
        )
        self.stage_seconds = Histogram(
            "gems_stage_seconds",
            "Time that a request spent in each stage; engine stages are those of its batch",
            ["stage"],
            buckets=_SECONDS,
            registry=registry,
        )
        self.batch_size = Histogram(
            "gems_batch_size",
            "Requests ranked together",
            buckets=(1, 2, 4, 8, 16, 32, 64, 128),
            registry=registry,
        )
        self.queue_depth = Gauge("gems_queue_depth", "Requests waiting for the engine", registry=registry)
        self.ready = Gauge("gems_ready", "1 if /health/ready answers 200", registry=registry)
        self.rejected = Counter(
            "gems_rejected_total", "Requests refused without a ranking", ["reason"], registry=registry
        )
        self.engine_failures = Counter(
            "gems_engine_failures_total", "Batches that the engine failed on", registry=registry
        )
        self.short_answers = Counter(
            "gems_fewer_than_limit_total",
            "Answers with fewer items than asked for",
            ["task"],
            registry=registry,
        )
        self.unknown_items = Counter(
            "gems_unknown_history_items_total", "History entries whose item is unknown", registry=registry
        )
        self.old_events = Counter(
            "gems_old_history_events_total", "History entries that did not fit the prompt", registry=registry
        )
        self.bundle = Gauge(
            "gems_bundle_info",
            "1 for the bundle that is served",
            ["bundle_id", "index_version", "scheme", "normalisation"],
            registry=registry,
        )
        self._create_series()

    def _create_series(self) -> None:
        """Show every series from the start: a rate misses the first count of a counter that appears later."""
        for task in Task:
            self.request_seconds.labels(task.value)
            self.short_answers.labels(task.value)
            for name in OUTCOMES:
                self.requests.labels(task.value, name)
        for stage in STAGES:
            self.stage_seconds.labels(stage)
        for reason in REJECTIONS.values():
            self.rejected.labels(reason)

    def watch(self, *, queue_depth: Callable[[], float], ready: Callable[[], bool]) -> None:
        """Read the gauges from their owners at each scrape."""
        self.queue_depth.set_function(queue_depth)
        self.ready.set_function(lambda: float(ready()))

    def name_bundle(self, bundle: Bundle) -> None:
        """Name what is served, in place of what was served before."""
        info = bundle.info
        self.bundle.clear()
        self.bundle.labels(info.bundle_id, bundle.index.version, info.scheme, info.normalisation).set(1)

    def render(self) -> bytes:
        """The exposition text."""
        return generate_latest(self.registry)
