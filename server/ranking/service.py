"""The way of a request, shared by all endpoints: history and query in, items out."""

from __future__ import annotations

import asyncio
import logging
import time
from dataclasses import replace

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
from server.api.requests import BatchRequest, HistoryEntry, RecommendRequest, SearchRequest
from server.api.responses import Answer, BatchAnswer, Explanation, FallbackReason
from server.api.stages import STAGES
from server.people.interaction import Interaction
from server.people.people import People
from server.ranking.answer import answer_of
from server.ranking.explanation import explain
from server.ranking.parsed_request import ParsedRequest, check_caps, parse
from server.ranking.ranked import Ranked, rank_by_model, rank_by_popularity
from server.serving.deployments import Deployments
from server.serving.scheduler import Scheduler
from server.settings import Settings
from server.telemetry import tracing
from server.telemetry.metrics import Metrics, outcome

logger = logging.getLogger("server.ranking.service")

FALLBACKS: dict[type[ServerError], FallbackReason] = {
    EngineFailedError: "engine_failed",
    EngineUnavailableError: "engine_unavailable",
    DeadlineError: "deadline_exceeded",
}


class Service:
    """Answers requests from the current deployment. A history may be empty: the model then answers without one.

    people: from whom requests with a `user_id` get their history; None if nobody is remembered.
    """

    def __init__(
        self, deployments: Deployments, people: People | None, metrics: Metrics, settings: Settings
    ) -> None:
        self._deployments = deployments
        self._people = people
        self._metrics = metrics
        self._settings = settings

    def admit(self) -> None:
        """Raise the error with which any ranking request would be refused now."""
        self._deployments.current.scheduler.admit()

    async def answer(
        self, body: RecommendRequest, request_id: str, started: float, *, admitted: bool = False
    ) -> Answer:
        """Rank for a validated request.

        started: time at which it arrived, on the clock of `time.perf_counter`.
        admitted: whether it is part of a batch that was admitted as a whole.
        Raises `InvalidRequestError` if it exceeds the settings, and what `Scheduler.rank` raises.
        """
        check_caps(body, self._settings)
        began = time.perf_counter()
        stored = await self._stored(body, started)
        read_seconds = time.perf_counter() - began
        deployment = self._deployments.current  # this one to the end, also if another is swapped in meanwhile
        task = Task.SEARCH if isinstance(body, SearchRequest) else Task.RECOMMENDATION
        with deployment.used(), tracing.ranking(task.value) as account:
            parsed = parse(
                body, deployment.bundle, deployment.contents.popularity, self._settings, started, stored
            )
            account.tell(
                bundle_id=parsed.bundle.info.bundle_id,
                index_version=parsed.bundle.index.version,
                history_events=len(parsed.history.events),
                prompt_tokens=len(parsed.prompt.ids),
                allowed_items=parsed.allowed.count,
                limit=parsed.limit,
                beam_width=parsed.beam_width,
            )
            ranked = await self._ranked_or_popular(parsed, deployment.scheduler, admitted)
            explanation = None
            if body.explain and ranked.fallback is None:  # if the explanation fails, the whole request does
                ranked, explanation = await self._explained(parsed, ranked, deployment.scheduler)
            if body.user_id is not None:
                ranked = replace(ranked, seconds={"history": read_seconds, **ranked.seconds})
            account.seconds = ranked.seconds
            account.tell(
                items=len(ranked.items),
                cached_tokens=ranked.cached_tokens,
                fallback=ranked.fallback or "none",
            )
            answer = answer_of(parsed, ranked, explanation, request_id, started)
            self._count(parsed, ranked, answer)
            return answer

    async def _stored(self, body: RecommendRequest, started: float) -> list[HistoryEntry] | None:
        """Return what is kept of the person of a request; None if there is none, or the store is down."""
        if body.user_id is None:
            return None
        if self._people is None:
            raise InvalidRequestError.at(
                "user_id", "this server remembers nobody (GEMS_PEOPLE_STORE is not set); send 'history'"
            )
        seconds = (body.timeout_ms or self._settings.request_timeout_ms) / 1000
        kept = await self._people.history(body.user_id, started + seconds - time.perf_counter())
        return None if kept is None else [_entry(each) for each in kept]

    async def answer_batch(self, body: BatchRequest, request_id: str, started: float) -> BatchAnswer:
        """Answer every request of a batch, or say what is wrong with it.

        As many at a time as the engine ranks together, so that a batch does not fill the queue. Raises
        `InvalidRequestError` for too many requests.
        """
        most = self._settings.max_batch_requests
        if len(body.requests) > most:
            raise InvalidRequestError.at("requests", f"at most {most} of them")
        places = asyncio.Semaphore(self._settings.max_batch_size)

        async def one(entry: RecommendRequest) -> Answer | ServerError:
            async with places:
                await asyncio.sleep(0)  # long histories take the loop's time: other requests come in between
                try:
                    return await self.answer(entry, request_id, started, admitted=True)
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

    async def _ranked_or_popular(self, parsed: ParsedRequest, scheduler: Scheduler, admitted: bool) -> Ranked:
        """Rank by the model; by popularity if that is wanted and the model cannot."""
        if parsed.popularity is None:
            return await rank_by_model(parsed, scheduler, admitted)
        if parsed.starts_cold:
            return self._popular(parsed, parsed.popularity, "cold_start")
        try:
            return await rank_by_model(parsed, scheduler, admitted)
        except tuple(FALLBACKS) as error:
            return self._popular(parsed, parsed.popularity, FALLBACKS[type(error)])

    def _popular(self, parsed: ParsedRequest, popularity: Popularity, reason: FallbackReason) -> Ranked:
        self._metrics.fallbacks.labels(reason).inc()
        return rank_by_popularity(parsed, popularity, reason)

    async def _explained(
        self, parsed: ParsedRequest, ranked: Ranked, scheduler: Scheduler
    ) -> tuple[Ranked, Explanation | None]:
        """Explain the first item; returns also the ranking with the time that this took."""
        began = time.perf_counter()
        explanation = None
        if ranked.items and parsed.is_fresh(ranked.items[0]):  # the model cannot tell what mattered
            item_id = parsed.bundle.index.catalogue.item_id(ranked.items[0])
            explanation = Explanation(
                item_id=item_id,
                signals=dict(ranked.signals or {}),
                history=[],
                unexplained=parsed.events_in_prompt,
            )
        elif ranked.items and (parsed.events_in_prompt or ranked.signals):
            explanation = await explain(
                ranked.items[0],
                ranked.scores[0] if ranked.signals is None else None,
                [parsed.history.events[k] for k in parsed.prompt.events],
                [parsed.history.positions[k] for k in parsed.prompt.events],
                parsed.query,
                parsed.bundle,
                scheduler,
                most=self._settings.max_explained,
                timeout=parsed.remaining(),
            )
            explanation = explanation.model_copy(update={"signals": ranked.signals})
        seconds = {**ranked.seconds, "explain": time.perf_counter() - began}
        return replace(ranked, seconds=seconds), explanation

    def _count(self, parsed: ParsedRequest, ranked: Ranked, answer: Answer) -> None:
        """Count an answer in the metrics."""
        metrics, body = self._metrics, parsed.body
        metrics.unknown_items.inc(answer.dropped.unknown_count)
        metrics.old_events.inc(answer.dropped.old_events)
        metrics.unknown_candidates.inc(answer.dropped.unknown_candidates_count)
        for source in ranked.sources:
            metrics.items.labels(source).inc()
        if answer.fewer_than_limit is not None:
            metrics.short_answers.labels(answer.task).inc()
        if body.filter is not None or body.candidates is not None or body.exclude or body.exclude_history:
            metrics.restricted_answers.labels(answer.task).inc()
        if answer.fallback is not None:
            return
        metrics.beam_width.observe(max(parsed.beam_width, parsed.limit))
        metrics.prompt_tokens.inc(len(parsed.prompt.ids))
        metrics.cached_tokens.inc(ranked.cached_tokens)
        for stage in STAGES:
            took_part = {"explain": answer.explanation is not None, "history": body.user_id is not None}
            if took_part.get(stage, True):
                metrics.stage_seconds.labels(stage).observe(ranked.seconds.get(stage, 0.0))


def _entry(kept: Interaction) -> HistoryEntry:
    """Return an event of the store as it would have been sent; the store holds only what was valid."""
    return HistoryEntry.model_construct(
        item_id=kept.item_id,
        behaviour="recommendation" if kept.query is None else "search",
        query=kept.query,
    )
