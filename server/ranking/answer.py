"""The answer to a ranked request: rows become ids and titles, and what was left out is reported."""

from __future__ import annotations

import time
from collections.abc import Mapping, Sequence

from server.api.responses import Answer, Dropped, Explanation, RankedItem, StoredHistory, Timings
from server.api.stages import STAGES
from server.ranking.parsed_request import ParsedRequest
from server.ranking.ranked import Ranked

MAX_UNKNOWN_NAMED = 20  # ids of a kind in an answer; the count is always complete


def answer_of(
    parsed: ParsedRequest, ranked: Ranked, explanation: Explanation | None, request_id: str, started: float
) -> Answer:
    """Return the answer to a request.

    started: time at which it arrived, on the clock of `time.perf_counter`.
    """
    bundle, history = parsed.bundle, parsed.history
    catalogue = bundle.index.catalogue
    relevance: Sequence[float | None] = ranked.relevance or [None] * len(ranked.items)
    facts = zip(ranked.items, ranked.scores, ranked.sources, relevance, strict=True)
    return Answer(
        request_id=request_id,
        bundle_id=bundle.info.bundle_id,
        index_version=bundle.index.version,
        task=parsed.task.value,
        items=[
            RankedItem(
                rank=rank,
                item_id=catalogue.item_id(row),
                title=catalogue.title(row),
                score=score,
                source=source,
                relevance=share,
            )
            for rank, (row, score, source, share) in enumerate(facts, start=1)
        ],
        ranking=None if ranked.fallback else "beam" if ranked.relevance is None else "pool",
        fewer_than_limit=parsed.why_fewer(len(ranked.items), ranked.irrelevant),
        fallback=ranked.fallback,
        stored_history=_stored_history(parsed),
        stored_events=parsed.stored or 0,
        dropped=Dropped(
            unknown_items=_first(history.unknown),
            unknown_count=len(history.unknown),
            old_events=len(history.rows) - history.new - parsed.events_in_prompt,
            new_events=history.new,
            unknown_candidates=_first(parsed.candidates.unknown),
            unknown_candidates_count=len(parsed.candidates.unknown),
        ),
        explanation=explanation,
        cached_tokens=ranked.cached_tokens,
        timings_ms=_timings(ranked.seconds, time.perf_counter() - started),
    )


def _stored_history(parsed: ParsedRequest) -> StoredHistory | None:
    if parsed.body.user_id is None:
        return None
    return "unavailable" if parsed.stored is None else "read"


def _first(unknown: Sequence[str]) -> list[str]:
    """Return the first distinct ids."""
    return list(dict.fromkeys(unknown))[:MAX_UNKNOWN_NAMED]


def _timings(seconds: Mapping[str, float], total: float) -> Timings:
    """Convert seconds by stage to milliseconds."""
    stages = {stage: seconds.get(stage, 0.0) for stage in STAGES} | {"total": total}
    return Timings(**{stage: round(value * 1000, 3) for stage, value in stages.items()})
