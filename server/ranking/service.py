"""The path of a request, shared by all endpoints: history and query in, items out."""

from __future__ import annotations

import asyncio
import logging
import math
import time
from dataclasses import dataclass, replace

from index.popularity import Popularity
from index.sequence.events import Task
from server.api.errors import (
    DeadlineError,
    EngineFailedError,
    EngineUnavailableError,
    InvalidRequestError,
    ServerError,
    as_server_error,
    problem,
)
from server.api.requests import BatchRequest, RecommendRequest, SearchRequest
from server.api.responses import (
    Answer,
    BatchAnswer,
    Dropped,
    Explanation,
    FallbackReason,
    RankedItem,
    Timings,
)
from server.engine.contract import RankRequest
from server.ranking.explanation import explain
from server.ranking.parsed_request import Asked, check_caps, understand
from server.ranking.selection import why_fewer
from server.serving.deployments import Served
from server.settings import Settings
from server.telemetry import tracing
from server.telemetry.metrics import STAGES, Metrics, outcome

logger = logging.getLogger("server.ranking.service")

MAX_UNKNOWN_NAMED = 20  # in an answer; the count is always whole
FALLBACKS: dict[type[ServerError], FallbackReason] = {
    EngineFailedError: "engine_failed",
    EngineUnavailableError: "engine_unavailable",
    DeadlineError: "deadline_exceeded",
}


@dataclass(frozen=True, slots=True)
class _Found:
    """Rows and scores, best first, who found them, and where the time went (seconds)."""

    rows: list[int]
    scores: list[float]
    fallback: FallbackReason | None
    explanation: Explanation | None
    cached_tokens: int
    seconds: dict[str, float]


class Service:
    """Answers requests from what is served. A history may be empty: the model then answers without one."""

    def __init__(self, served: Served, metrics: Metrics, settings: Settings) -> None:
        self._served = served
        self._metrics = metrics
        self._settings = settings

    def admit(self) -> None:
        """Raise what any ranking request would be refused with now."""
        self._served.current.scheduler.admit()

    async def answer(self, body: RecommendRequest, request_id: str, started: float) -> Answer:
        """Rank for a validated request; `started` is when it arrived (`perf_counter`).

        Raises `InvalidRequestError` for what exceeds the settings, and what `Scheduler.rank` raises.
        """
        check_caps(body, self._settings)
        deployment = self._served.current  # this one to the end, whatever is swapped in meanwhile
        task = Task.SEARCH if isinstance(body, SearchRequest) else Task.RECOMMENDATION
        with deployment.used(), tracing.ranking(task.value) as account:
            asked = understand(body, deployment, self._settings, started)
            account.tell(
                bundle_id=asked.bundle.info.bundle_id,
                index_version=asked.bundle.index.version,
                history_events=len(asked.history.events),
                prompt_tokens=len(asked.prompt.ids),
                allowed_items=asked.allowed.count,
                limit=asked.limit,
                beam_width=asked.beam_width,
            )
            found = await self._find(asked)
            account.seconds = found.seconds
            account.tell(
                items=len(found.rows), cached_tokens=found.cached_tokens, fallback=found.fallback or "none"
            )
            return self._answer(asked, found, request_id, started)

    async def answer_batch(self, body: BatchRequest, request_id: str, started: float) -> BatchAnswer:
        """Answer every request of a batch, or say what is wrong with it. As many at a time as the engine ranks
        together, so that a batch does not fill the queue. Raises `InvalidRequestError` for too many of them."""
        most = self._settings.max_batch_requests
        if len(body.requests) > most:
            raise InvalidRequestError.at("requests", f"at most {most} of them")
        places = asyncio.Semaphore(self._settings.max_batch_size)

        async def one(entry: RecommendRequest) -> Answer | ServerError:
            async with places:
                try:
                    return await self.answer(entry, request_id, started)
                except ServerError as error:
                    return error
                except Exception as error:
                    logger.error("unexpected error", extra={"request_id": request_id}, exc_info=error)
                    return as_server_error(error)

        results = await asyncio.gather(*map(one, body.requests))
        for entry, result in zip(body.requests, results, strict=True):
            status = result.status if isinstance(result, ServerError) else 200
            self._metrics.batch_entries.labels(entry.task, outcome(status)).inc()
        return BatchAnswer(
            request_id=request_id,
            answers=[problem(r, request_id) if isinstance(r, ServerError) else r for r in results],
        )

    async def _find(self, asked: Asked) -> _Found:
        """What answers, and why, if that is asked. A ranking whose explanation fails is no answer."""
        found = await self._ranked_or_popular(asked)
        if not asked.body.explain or found.fallback is not None:
            return found
        began = time.perf_counter()
        explanation = await self._explained(asked, found)
        seconds = found.seconds | {"explain": time.perf_counter() - began}
        return replace(found, explanation=explanation, seconds=seconds)

    async def _ranked_or_popular(self, asked: Asked) -> _Found:
        """By the model; by popularity where that was asked for and the model cannot."""
        popular = (asked.body.fallback or self._settings.fallback) == "popularity"
        if not popular or asked.popularity is None:
            return await self._ranked(asked)
        if asked.query is None and not asked.history.events:
            return self._popular(asked, asked.popularity, "cold_start")
        try:
            return await self._ranked(asked)
        except tuple(FALLBACKS) as error:
            return self._popular(asked, asked.popularity, FALLBACKS[type(error)])

    async def _ranked(self, asked: Asked) -> _Found:
        scheduler = asked.deployment.scheduler
        ranked = await scheduler.rank(
            RankRequest(
                asked.prompt.ids,
                asked.limit,
                asked.beam_width,
                asked.allowed,
                history=asked.prompt.history,
                deadline=time.monotonic() + asked.remaining(),
            ),
            asked.remaining(),
        )
        ranking = ranked.ranking
        if not all(map(math.isfinite, ranking.scores)):
            raise ServerError("The model gave a score that is not a number.")
        return _Found(
            rows=ranking.items,
            scores=ranking.scores,
            fallback=None,
            explanation=None,
            cached_tokens=ranking.cached_tokens,
            seconds={"queue": ranked.waited, "tokenise": asked.tokenised} | ranking.seconds,
        )

    async def _explained(self, asked: Asked, found: _Found) -> Explanation | None:
        if not found.rows or not asked.read:
            return None
        return await explain(
            found.rows[0],
            found.scores[0],
            asked.history.events[-asked.read :],
            asked.history.positions[-asked.read :],
            asked.query,
            asked.bundle,
            asked.deployment.scheduler,
            most=self._settings.max_explained,
            timeout=asked.remaining(),
        )

    def _popular(self, asked: Asked, popularity: Popularity, reason: FallbackReason) -> _Found:
        self._metrics.fallbacks.labels(reason).inc()
        rows, scores = popularity.best(asked.allowed, asked.limit)
        return _Found(rows, scores, reason, None, 0, {"tokenise": asked.tokenised})

    def _answer(self, asked: Asked, found: _Found, request_id: str, started: float) -> Answer:
        bundle, history = asked.bundle, asked.history
        items = [bundle.index.catalogue[row] for row in found.rows]
        source = "model" if found.fallback is None else "popularity"
        short = why_fewer(len(items), asked.limit, asked.allowed, bundle.index)
        old = len(history.rows) - asked.read
        self._count(asked, found, short is not None, old)
        return Answer(
            request_id=request_id,
            bundle_id=bundle.info.bundle_id,
            index_version=bundle.index.version,
            task=asked.task.value,
            items=[
                RankedItem(rank=rank, item_id=item.item_id, title=item.title, score=score, source=source)
                for rank, (item, score) in enumerate(zip(items, found.scores, strict=True), start=1)
            ],
            fewer_than_limit=short,
            fallback=found.fallback,
            dropped=Dropped(
                unknown_items=list(dict.fromkeys(history.unknown))[:MAX_UNKNOWN_NAMED],
                unknown_count=len(history.unknown),
                old_events=old,
            ),
            explanation=found.explanation,
            cached_tokens=found.cached_tokens,
            timings_ms=_timings(found.seconds, time.perf_counter() - started),
        )

    def _count(self, asked: Asked, found: _Found, short: bool, old: int) -> None:
        metrics, body = self._metrics, asked.body
        metrics.unknown_items.inc(len(asked.history.unknown))
        metrics.old_events.inc(old)
        if short:
            metrics.short_answers.labels(asked.task.value).inc()
        if body.filter is not None or body.candidates is not None or body.exclude or body.exclude_history:
            metrics.restricted_answers.labels(asked.task.value).inc()
        if found.fallback is not None:
            return
        metrics.beam_width.observe(max(asked.beam_width, asked.limit))
        metrics.prompt_tokens.inc(len(asked.prompt.ids))
        metrics.cached_tokens.inc(found.cached_tokens)
        for stage in STAGES:
            if stage != "explain" or found.explanation is not None:
                metrics.stage_seconds.labels(stage).observe(found.seconds.get(stage, 0.0))


def _timings(seconds: dict[str, float], total: float) -> Timings:
    stages = {stage: seconds.get(stage, 0.0) for stage in STAGES} | {"total": total}
    return Timings(**{stage: round(value * 1000, 3) for stage, value in stages.items()})
