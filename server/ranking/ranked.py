"""The ranking of a request, by whichever way: by the pool, by the beam alone, or by popularity."""

from __future__ import annotations

import math
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace

from index.pool.fusion import ITEM_SIGNALS
from index.pool.pool import Fused, Pool
from index.popularity import Popularity
from server.api.errors import ServerError
from server.api.responses import FallbackReason, Source
from server.engine.contract import Ranking, RankRequest
from server.ranking.parsed_request import ParsedRequest
from server.serving.scheduler import Scheduler


@dataclass(frozen=True)
class Ranked:
    """Items, best first.

    items: catalogue rows. scores: fused scores, log-probabilities, or logarithms of shares of all interactions.
    sources: of each item. relevance: of each item; None unless the pool was ranked.
    signals: contributions to the first item's score, by signal; None unless the pool was ranked.
    seconds: time of each stage. cached_tokens: prompt tokens from the prefix cache.
    fallback: why popularity answers instead of the model; None if the model does.
    irrelevant: number of items that `min_relevance` left out.
    """

    items: list[int]
    scores: list[float]
    sources: Sequence[Source]
    relevance: list[float] | None = None
    signals: Mapping[str, float] | None = None
    seconds: Mapping[str, float] = field(default_factory=dict)
    cached_tokens: int = 0
    fallback: FallbackReason | None = None
    irrelevant: int = 0


@dataclass(frozen=True, slots=True)
class Question:
    """A request as it is put to an engine, and what its ranking becomes: what lies on both sides of the engine.

    pool: the candidates with which the ranking is fused; None if the beam alone is ranked.
    request: for the engine; it never expires.
    gather_seconds: time that the candidates took.
    """

    parsed: ParsedRequest
    pool: Pool | None
    request: RankRequest
    gather_seconds: float

    @classmethod
    def of(cls, parsed: ParsedRequest) -> Question:
        """Gather the candidates of a request and write it for the engine."""
        began = time.perf_counter()
        pool = parsed.pool()
        gathered = time.perf_counter() - began
        width = max(parsed.limit, parsed.beam_width)
        request = RankRequest(
            parsed.prompt.ids,
            parsed.limit if pool is None else width,  # any item of the beam may come first
            parsed.beam_width,
            parsed.allowed,
            # New items that share an identifier take no place of the others.
            siblings=0 if pool is None else width,
            shared_tokens=parsed.prompt.history,
            pool=() if pool is None else pool.to_score,
            state=pool is not None and pool.needs_state,
        )
        return cls(parsed, pool, request, gathered)

    def ranked(self, ranking: Ranking) -> Ranked:
        """Return the items for the engine's ranking. Raises `ServerError` for a score that is not a number."""
        if not all(map(math.isfinite, [*ranking.scores, *ranking.pool_scores])):
            raise ServerError("The model gave a score that is not a number.")
        seconds = {"tokenise": self.parsed.parse_seconds} | ranking.seconds
        if self.pool is None:
            sources: list[Source] = ["beam"] * len(ranking.items)
            return Ranked(ranking.items, ranking.scores, sources, None, None, seconds, ranking.cached_tokens)
        began = time.perf_counter()
        fused = self.pool.fuse(ranking, self.parsed.limit)
        if not all(map(math.isfinite, [*fused.scores, *fused.relevance])):
            raise ServerError("A signal of the pool is not a number.")
        seconds["pool"] = self.gather_seconds + time.perf_counter() - began
        return _of_pool(self.parsed, fused, ranking, seconds)


async def rank_by_model(parsed: ParsedRequest, scheduler: Scheduler, admitted: bool = False) -> Ranked:
    """Rank by the model: its pool of candidates, or the beam alone. Raises what `Scheduler.rank` raises.

    admitted: whether the request is part of a batch that was admitted as a whole.
    """
    question = Question.of(parsed)
    request = replace(question.request, deadline=time.monotonic() + parsed.remaining())
    return question.ranked(await scheduler.rank(request, parsed.remaining(), admitted=admitted))


def _of_pool(parsed: ParsedRequest, fused: Fused, ranking: Ranking, seconds: Mapping[str, float]) -> Ranked:
    """Return the items of a pool that are relevant enough: the first ones, because relevance falls with the rank."""
    least = parsed.body.min_relevance or 0.0
    kept = sum(share >= least for share in fused.relevance)
    names = ITEM_SIGNALS[parsed.task]
    signals = dict(zip(names, fused.signals[0].tolist(), strict=True)) if kept else {}
    return Ranked(
        fused.items[:kept],
        fused.scores[:kept],
        fused.sources[:kept],
        fused.relevance[:kept],
        signals,
        seconds,
        ranking.cached_tokens,
        irrelevant=len(fused.items) - kept,
    )


def rank_by_popularity(parsed: ParsedRequest, popularity: Popularity, reason: FallbackReason) -> Ranked:
    """Rank by popularity. reason: why the model does not answer."""
    items, scores = popularity.best(parsed.allowed, parsed.limit)
    sources: list[Source] = ["popularity"] * len(items)
    return Ranked(items, scores, sources, seconds={"tokenise": parsed.parse_seconds}, fallback=reason)
