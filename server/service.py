"""The path of a request, shared by both endpoints: history and query in, items out."""

from __future__ import annotations

import math
import time
from collections.abc import Sequence
from dataclasses import dataclass

from index.bundle import Bundle
from index.history import Event, Task
from index.sequence import Prompt, SequenceError
from server.engine.contract import Ranking, RankRequest
from server.errors import InvalidRequestError, ServerError
from server.metrics import STAGES, Metrics
from server.scheduler import Scheduler
from server.schemas import Answer, Dropped, HistoryEntry, RankedItem, RecommendRequest, SearchRequest, Timings
from server.selection import allowed_items, why_fewer
from server.served import Served
from server.settings import Settings

MAX_UNKNOWN_NAMED = 20  # in an answer; the count is always whole


@dataclass(frozen=True, slots=True)
class _History:
    """rows: catalogue rows of all known entries, oldest first. events: the newest of them, as events."""

    rows: list[int]
    events: list[Event]
    unknown: list[str]


class Service:
    """Answers requests from what is served. A history may be empty: the model then answers without one."""

    def __init__(self, served: Served, scheduler: Scheduler, metrics: Metrics, settings: Settings) -> None:
        self._served = served
        self._scheduler = scheduler
        self._metrics = metrics
        self._settings = settings

    async def answer(self, body: RecommendRequest, request_id: str, started: float) -> Answer:
        """Rank for a validated request; `started` is when it arrived (`perf_counter`).

        Raises `InvalidRequestError` for what exceeds the settings, and what `Scheduler.rank` raises.
        """
        self._scheduler.admit()  # refused before any work is done for it
        self._check_caps(body)
        began = time.perf_counter()
        bundle = self._served.bundle  # this version to the end, whatever is swapped in meanwhile
        query = body.query if isinstance(body, SearchRequest) else None
        history = self._read(body.history, bundle)
        prompt = _encode(bundle, history.events, query)
        limit = body.limit or self._settings.default_limit
        beam_width = body.beam_width or max(limit, self._settings.default_beam_width)
        allowed = allowed_items(body, history.rows, bundle.index)
        tokenised = time.perf_counter() - began

        ranked = await self._scheduler.rank(
            RankRequest(prompt.ids, limit, beam_width, allowed), self._settings.request_timeout_ms / 1000
        )
        items = _items(ranked.ranking, bundle)
        task = Task.RECOMMENDATION if query is None else Task.SEARCH
        short = why_fewer(len(items), limit, allowed, bundle.index)
        old = prompt.dropped_events + len(history.rows) - len(history.events)
        seconds = {"queue": ranked.waited, "tokenise": tokenised} | ranked.ranking.seconds
        self._count(task, short is not None, len(history.unknown), old, seconds)
        return Answer(
            request_id=request_id,
            bundle_id=bundle.info.bundle_id,
            index_version=bundle.index.version,
            task=task.value,
            items=items,
            fewer_than_limit=short,
            dropped=Dropped(
                unknown_items=list(dict.fromkeys(history.unknown))[:MAX_UNKNOWN_NAMED],
                unknown_count=len(history.unknown),
                old_events=old,
            ),
            timings_ms=_timings(seconds, time.perf_counter() - started),
        )

    def warm_up_requests(self) -> list[RankRequest]:
        """The longest prompt of this bundle: what cannot be served is found before somebody asks for it."""
        bundle = self._served.bundle
        items = len(bundle.index.catalogue)
        longest = [Event(k % items) for k in range(bundle.info.max_events)]
        prompt = bundle.encoder.prompt(longest)
        return [RankRequest(prompt.ids, self._settings.default_limit, self._settings.default_beam_width)]

    def _check_caps(self, body: RecommendRequest) -> None:
        settings = self._settings
        if len(body.history) > settings.max_history:
            raise InvalidRequestError.at(
                "history", f"at most {settings.max_history} entries; send the newest"
            )
        if body.limit is not None and body.limit > settings.max_limit:
            raise InvalidRequestError.at("limit", f"at most {settings.max_limit}")
        if body.beam_width is not None and body.beam_width > settings.max_beam_width:
            raise InvalidRequestError.at("beam_width", f"at most {settings.max_beam_width}")
        if isinstance(body, SearchRequest) and len(body.query) > settings.max_query_chars:
            raise InvalidRequestError.at("query", f"at most {settings.max_query_chars} characters")

    def _read(self, entries: Sequence[HistoryEntry], bundle: Bundle) -> _History:
        """Item ids to rows. Only as many events are made as the encoder may use."""
        known: list[tuple[int, HistoryEntry]] = []
        unknown: list[str] = []
        for entry in entries:
            row = bundle.index.catalogue.row(entry.item_id)
            if row is None:
                unknown.append(entry.item_id)
            else:
                known.append((row, entry))
        newest = known[max(0, len(known) - bundle.encoder.max_events) :]
        return _History([row for row, _ in known], [self._event(*pair) for pair in newest], unknown)

    def _event(self, row: int, entry: HistoryEntry) -> Event:
        if entry.query is None or entry.behaviour != "search":
            return Event(row)
        # The encoder cuts queries by tokens; what lies beyond the cap would not be used anyway.
        return Event(row, Task.SEARCH, entry.query.strip()[: self._settings.max_query_chars])

    def _count(self, task: Task, short: bool, unknown: int, old: int, seconds: dict[str, float]) -> None:
        self._metrics.unknown_items.inc(unknown)
        self._metrics.old_events.inc(old)
        if short:
            self._metrics.short_answers.labels(task.value).inc()
        for stage in STAGES:
            self._metrics.stage_seconds.labels(stage).observe(seconds.get(stage, 0.0))


def _timings(seconds: dict[str, float], total: float) -> Timings:
    stages = {stage: seconds.get(stage, 0.0) for stage in STAGES} | {"total": total}
    return Timings(**{stage: round(value * 1000, 3) for stage, value in stages.items()})


def _encode(bundle: Bundle, events: Sequence[Event], query: str | None) -> Prompt:
    try:
        return bundle.encoder.prompt(events, query)
    except SequenceError as error:
        raise InvalidRequestError("The text of a query cannot be read by the model.") from error


def _items(ranking: Ranking, bundle: Bundle) -> list[RankedItem]:
    if not all(map(math.isfinite, ranking.scores)):
        raise ServerError("The model gave a score that is not a number.")
    items = [bundle.index.catalogue[row] for row in ranking.items]
    return [
        RankedItem(rank=rank, item_id=item.item_id, title=item.title, score=score)
        for rank, (item, score) in enumerate(zip(items, ranking.scores, strict=True), start=1)
    ]
