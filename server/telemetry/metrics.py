"""The metrics for Prometheus: `gems_` histograms, counters and gauges with small, fixed sets of labels.

Every application has its own registry, so that several can exist in one process. No label contains anything that a
client sent.
"""

from __future__ import annotations

import math
import os
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from datetime import datetime
from typing import Any, get_args

from prometheus_client import CollectorRegistry, Counter, Gauge, Histogram, generate_latest
from prometheus_client.core import CounterMetricFamily
from prometheus_client.registry import Collector

from index.bundle.bundle import Bundle
from index.sequence.events import Task
from server.api.paths import KINDS
from server.api.responses import FallbackReason, Source
from server.api.stages import STAGES
from server.runtime.log_pipe import dropped_lines
from server.runtime.memory import limit_bytes, resident_bytes

OUTCOMES = ("ok", "invalid", "rejected", "cancelled", "unavailable", "timeout", "error")
REJECTIONS = (
    *("unauthorized", "body_timeout", "body_too_large", "queue_full", "deadline_unreachable"),
    *("not_ready", "engine_unavailable", "deadline_exceeded"),
)
EVENT_OUTCOMES = ("stored", "duplicates", "outdated")
STORE_OPERATIONS = ("read", "write", "forget")
VALIDATION_FIGURES = ("loss", "hit@10", "ndcg@10")
SOURCES: tuple[Source, ...] = get_args(Source)
FALLBACK_REASONS: tuple[FallbackReason, ...] = get_args(FallbackReason)

_SECONDS = (0.001, 0.0025, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1.0, 2.5, 5.0, 10.0, 30.0)


def outcome(status: int) -> str:
    """Return the outcome label of a response status."""
    if status < 400:
        return "ok"
    named = {429: "rejected", 499: "cancelled", 503: "unavailable", 504: "timeout"}
    return named.get(status, "invalid" if status < 500 else "error")


@dataclass(frozen=True)
class BundleSeries:
    """Values of the series that describe a bundle.

    labels: of `gems_bundle_info`.
    created, index_created: seconds since 1970.
    conflict: mean conflict of the tasks' gradients; NaN if the bundle does not say.
    validation: figures by task and name; NaN for those that the bundle lacks.
    """

    labels: tuple[str, ...]
    created: float
    index_created: float
    conflict: float
    validation: Mapping[tuple[str, str], float]


class Metrics:
    """The metrics of one application. `docs/api.md` describes each of them; a test checks that."""

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
            "Time that a request spent in each stage; a step of the engine counts for every request in it",
            ["stage"],
            buckets=_SECONDS,
            registry=registry,
        )
        self.batch_size = Histogram(
            "gems_batch_size",
            "Requests in flight in the engine, observed whenever it gets more",
            buckets=(1, 2, 4, 8, 16, 32, 64, 128),
            registry=registry,
        )
        self.batch_entries = Counter(
            "gems_batch_entries_total",
            "Requests within batch calls",
            ["task", "outcome"],
            registry=registry,
        )
        self.beam_width = Histogram(
            "gems_beam_width",
            "Hypotheses kept per level, by answered request",
            buckets=(1, 5, 10, 20, 50, 100, 200, 500, 1000),
            registry=registry,
        )
        self.prompt_tokens = Counter(
            "gems_prompt_tokens_total", "Tokens of the prompts of answered requests", registry=registry
        )
        self.cached_tokens = Counter(
            "gems_cached_prompt_tokens_total",
            "Prompt tokens that came from the prefix cache",
            registry=registry,
        )
        self.queue_depth = Gauge("gems_queue_depth", "Requests waiting for the engine", registry=registry)
        self.queue_limit = Gauge("gems_queue_limit", "Requests that may wait now", registry=registry)
        self.ready = Gauge("gems_ready", "1 if /health/ready answers 200", registry=registry)
        self.rejected = Counter(
            "gems_rejected_total", "Requests refused without a ranking", ["reason"], registry=registry
        )
        self.engine_failures = Counter(
            "gems_engine_failures_total", "Batches or steps that the engine failed on", registry=registry
        )
        self.engine_restarts = Counter(
            "gems_engine_restarts_total", "Engine processes that replaced a lost one", registry=registry
        )
        self.engine_up = Gauge("gems_engine_up", "1 if the engine can rank", registry=registry)
        self.memory = Gauge(
            "gems_resident_memory_bytes", "Resident memory of each process", ["process"], registry=registry
        )
        self.memory_limit = Gauge(
            "gems_memory_limit_bytes", "Memory that all processes together may use", registry=registry
        )
        self.fallbacks = Counter(
            "gems_fallbacks_total",
            "Answers by popularity instead of the model",
            ["reason"],
            registry=registry,
        )
        self.items = Counter(
            "gems_items_total", "Items of answers, by where they came from", ["source"], registry=registry
        )
        self.restricted_answers = Counter(
            "gems_restricted_answers_total",
            "Answers under a filter, candidates or exclusions that the request names",
            ["task"],
            registry=registry,
        )
        self.short_answers = Counter(
            "gems_fewer_than_limit_total",
            "Answers with fewer items than requested",
            ["task"],
            registry=registry,
        )
        self.unknown_items = Counter(
            "gems_unknown_history_items_total", "History entries whose item is unknown", registry=registry
        )
        self.unknown_candidates = Counter(
            "gems_unknown_candidates_total", "Candidates that the catalogue does not hold", registry=registry
        )
        self.events = Counter(
            "gems_events_total",
            "Events that were sent, by what became of them",
            ["outcome"],
            registry=registry,
        )
        self.unknown_event_items = Counter(
            "gems_unknown_event_items_total", "Events whose item is unknown", registry=registry
        )
        self.store_seconds = Histogram(
            "gems_store_seconds",
            "Time of an operation of the store of people",
            ["operation"],
            buckets=_SECONDS,
            registry=registry,
        )
        self.store_failures = Counter(
            "gems_store_failures_total",
            "Operations of the store of people that failed, or took too long",
            ["operation"],
            registry=registry,
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
        self.bundle_created = Gauge(
            "gems_bundle_created_timestamp_seconds", "When the served bundle was made", registry=registry
        )
        self.index_created = Gauge(
            "gems_index_created_timestamp_seconds",
            "When the served index version was made",
            registry=registry,
        )
        self.training_conflict = Gauge(
            "gems_training_conflict",
            "Mean conflict of the tasks' gradients at the end of training: 0 aligned, 1 orthogonal, above 1 opposed",
            registry=registry,
        )
        self.training_validation = Gauge(
            "gems_training_validation",
            "Figures of the served model on the validation cases of its training",
            ["task", "figure"],
            registry=registry,
        )
        registry.register(_DroppedLogLines())
        self._create_series()

    def _create_series(self) -> None:
        """Create every series at the start: a rate misses the first count of a series that appears later."""
        for kind in KINDS:
            self.request_seconds.labels(kind)
            for name in OUTCOMES:
                self.requests.labels(kind, name)
        for task in Task:
            self.short_answers.labels(task.value)
            self.restricted_answers.labels(task.value)
            for name in OUTCOMES:
                self.batch_entries.labels(task.value, name)
        for stage in STAGES:
            self.stage_seconds.labels(stage)
        for event_outcome in EVENT_OUTCOMES:
            self.events.labels(event_outcome)
        for operation in STORE_OPERATIONS:
            self.store_seconds.labels(operation)
            self.store_failures.labels(operation)
        for reason in REJECTIONS:
            self.rejected.labels(reason)
        for source in SOURCES:
            self.items.labels(source)
        for fallback in FALLBACK_REASONS:
            self.fallbacks.labels(fallback)

    def watch(
        self,
        *,
        queue_depth: Callable[[], float],
        queue_limit: Callable[[], float],
        ready: Callable[[], bool],
        engine_up: Callable[[], bool],
    ) -> None:
        """Register functions that give the values of gauges at each scrape.

        queue_depth: requests that wait.
        queue_limit: requests that may wait.
        ready: whether `/health/ready` answers 200.
        engine_up: whether the engine can rank.
        """
        self.queue_depth.set_function(queue_depth)
        self.queue_limit.set_function(queue_limit)
        self.ready.set_function(lambda: float(ready()))
        self.engine_up.set_function(lambda: float(engine_up()))

    def watch_memory(self, engine_pid: Callable[[], int | None]) -> None:
        """Read the memory of this process and of the engine process at each scrape.

        engine_pid: returns the process id of the engine; None if there is no engine process.
        """
        self.memory.labels("server").set_function(lambda: resident_bytes(os.getpid()))
        self.memory.labels("engine").set_function(lambda: resident_bytes(engine_pid()))
        self.memory_limit.set_function(limit_bytes)

    def describe(self, bundle: Bundle) -> BundleSeries:
        """Return the values of the series that describe a bundle."""
        info, index = bundle.info, bundle.index
        validation = info.training.get("validation")
        figures = validation if isinstance(validation, Mapping) else {}
        return BundleSeries(
            labels=(info.bundle_id, index.version, info.scheme, info.normalisation),
            created=datetime.fromisoformat(info.created).timestamp(),
            index_created=datetime.fromisoformat(index.created).timestamp(),
            conflict=_number(info.training.get("conflict")),
            validation={
                (task.value, figure): _number(figures.get(f"{task.value}.{figure}"))
                for task in Task
                for figure in VALIDATION_FIGURES
            },
        )

    def show(self, series: BundleSeries) -> None:
        """Describe the bundle that is served; it replaces the description of the previous one."""
        self.bundle.clear()
        self.bundle.labels(*series.labels).set(1)
        self.bundle_created.set(series.created)
        self.index_created.set(series.index_created)
        self.training_conflict.set(series.conflict)
        for labels, value in series.validation.items():
            self.training_validation.labels(*labels).set(value)

    def render(self) -> bytes:
        """Return the metrics in the text format of Prometheus."""
        return generate_latest(self.registry)


class _DroppedLogLines(Collector):
    """The count of the process, read at each scrape."""

    def collect(self) -> Iterator[CounterMetricFamily]:
        yield CounterMetricFamily(
            "gems_log_lines_dropped",
            "Log lines of all processes that were dropped because stderr was not read or not writable",
            dropped_lines(),
        )


def _number(value: Any) -> float:
    try:
        return float(value) if isinstance(value, int | float) else math.nan
    except OverflowError:  # a whole number that no float can hold
        return math.nan
