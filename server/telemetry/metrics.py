"""What Prometheus scrapes: `gems_` histograms and counters with small, fixed label sets.

Every application has a registry of its own, so that several can live in one process.
No label ever holds anything that a client sent.
"""

from __future__ import annotations

import math
import os
from collections.abc import Callable, Mapping
from datetime import datetime
from typing import Any, get_args

from prometheus_client import CollectorRegistry, Counter, Gauge, Histogram, generate_latest

from index.bundle.bundle import Bundle
from index.sequence.events import Task
from server.api.paths import KINDS
from server.api.responses import FallbackReason
from server.runtime.memory import limit_bytes, resident_bytes

STAGES = ("queue", "tokenise", "prefill", "decode", "head", "trie", "explain")
OUTCOMES = ("ok", "invalid", "rejected", "cancelled", "unavailable", "timeout", "error")
REJECTIONS = (
    *("unauthorized", "body_timeout", "body_too_large", "queue_full", "deadline_unreachable"),
    *("not_ready", "engine_unavailable", "deadline_exceeded"),
)
VALIDATION_FIGURES = ("loss", "hit@10", "ndcg@10")
FALLBACK_REASONS: tuple[FallbackReason, ...] = get_args(FallbackReason)

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
            "Time that a request spent in each stage; a step of the engine counts for all that took part",
            ["stage"],
            buckets=_SECONDS,
            registry=registry,
        )
        self.batch_size = Histogram(
            "gems_batch_size",
            "Requests that the engine has in hand, whenever it is given more",
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
            "Those that the engine knew from earlier requests",
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
            "gems_memory_limit_bytes", "What all processes together may take", registry=registry
        )
        self.fallbacks = Counter(
            "gems_fallbacks_total",
            "Answers by popularity instead of the model",
            ["reason"],
            registry=registry,
        )
        self.restricted_answers = Counter(
            "gems_restricted_answers_total",
            "Answers under a filter, candidates or exclusions",
            ["task"],
            registry=registry,
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
        self._create_series()

    def _create_series(self) -> None:
        """Show every series from the start: a rate misses the first count of a counter that appears later."""
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
        for reason in REJECTIONS:
            self.rejected.labels(reason)
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
        """Read the gauges from their owners at each scrape."""
        self.queue_depth.set_function(queue_depth)
        self.queue_limit.set_function(queue_limit)
        self.ready.set_function(lambda: float(ready()))
        self.engine_up.set_function(lambda: float(engine_up()))

    def watch_memory(self, engine_pid: Callable[[], int | None]) -> None:
        """Read the memory of this process and of the engine's at each scrape; a pid of None stands for no process of
        its own."""
        self.memory.labels("server").set_function(lambda: resident_bytes(os.getpid()))
        self.memory.labels("engine").set_function(lambda: resident_bytes(engine_pid()))
        self.memory_limit.set_function(limit_bytes)

    def name_bundle(self, bundle: Bundle) -> None:
        """Name what is served, in place of what was served before."""
        info = bundle.info
        self.bundle.clear()
        self.bundle.labels(info.bundle_id, bundle.index.version, info.scheme, info.normalisation).set(1)
        self.bundle_created.set(datetime.fromisoformat(info.created).timestamp())
        self._tell_of_training(info.training)
        self.index_created.set(datetime.fromisoformat(bundle.index.created).timestamp())

    def _tell_of_training(self, record: Mapping[str, Any]) -> None:
        """What the bundle says of its training; NaN for what it does not say."""
        validation = record.get("validation")
        figures = validation if isinstance(validation, Mapping) else {}
        self.training_conflict.set(_number(record.get("conflict")))
        for task in Task:
            for figure in VALIDATION_FIGURES:
                value = _number(figures.get(f"{task.value}.{figure}"))
                self.training_validation.labels(task.value, figure).set(value)

    def render(self) -> bytes:
        """The exposition text."""
        return generate_latest(self.registry)


def _number(value: Any) -> float:
    return float(value) if isinstance(value, int | float) else math.nan
