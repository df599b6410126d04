"""A request read with one index version of a deployment: rows, prompt, allowed items and a deadline."""

from __future__ import annotations

import time
from collections.abc import Sequence
from dataclasses import dataclass

from index.bundle.bundle import Bundle
from index.popularity import Popularity
from index.sequence.encoder import Prompt, SequenceError
from index.sequence.events import Event, Task
from index.trie.allowed import Allowed
from server.api.errors import InvalidRequestError
from server.api.requests import RecommendRequest, SearchRequest
from server.ranking.history import History
from server.ranking.selection import allowed_items
from server.serving.deployment import Deployment
from server.settings import Settings


@dataclass(frozen=True, slots=True)
class ParsedRequest:
    """A validated request, read with the index version that it began with, to which it keeps.

    body: the request as it was sent.
    deployment: the one that answers; `bundle` and `popularity` are those of the index version.
    history, query: the person's events, and the text of a search; None for a recommendation.
    prompt: tokens for the engine.
    limit, beam_width: requested values, or the server's defaults.
    allowed: items that may be returned.
    deadline: seconds on the clock of `time.perf_counter`.
    parse_seconds: time that reading took.
    """

    body: RecommendRequest
    deployment: Deployment
    bundle: Bundle
    popularity: Popularity | None
    history: History
    query: str | None
    prompt: Prompt
    limit: int
    beam_width: int
    allowed: Allowed
    deadline: float
    parse_seconds: float

    @property
    def task(self) -> Task:
        return Task.RECOMMENDATION if self.query is None else Task.SEARCH

    @property
    def events_in_prompt(self) -> int:
        """Number of events that the prompt holds; they are the newest."""
        return len(self.history.events) - self.prompt.dropped_events

    def remaining(self) -> float:
        """Return the seconds until the deadline."""
        return self.deadline - time.perf_counter()


def check_caps(body: RecommendRequest, settings: Settings) -> None:
    """Raise `InvalidRequestError` if a request exceeds the server's settings."""
    if len(body.history) > settings.max_history:
        raise InvalidRequestError.at("history", f"at most {settings.max_history} entries; send the newest")
    if body.limit is not None and body.limit > settings.max_limit:
        raise InvalidRequestError.at("limit", f"at most {settings.max_limit}")
    if body.beam_width is not None and body.beam_width > settings.max_beam_width:
        raise InvalidRequestError.at("beam_width", f"at most {settings.max_beam_width}")
    if body.timeout_ms is not None and body.timeout_ms > settings.request_timeout_ms:
        raise InvalidRequestError.at("timeout_ms", f"at most {settings.request_timeout_ms:g}")
    if isinstance(body, SearchRequest) and len(body.query) > settings.max_query_chars:
        raise InvalidRequestError.at("query", f"at most {settings.max_query_chars} characters")


def parse(
    body: RecommendRequest, deployment: Deployment, settings: Settings, started: float
) -> ParsedRequest:
    """Read a request that keeps the caps.

    started: time at which it arrived, on the clock of `time.perf_counter`.
    Raises `InvalidRequestError`.
    """
    began = time.perf_counter()
    bundle = deployment.bundle
    query = body.query if isinstance(body, SearchRequest) else None
    history = History.read(body.history, bundle, settings.max_query_chars)
    limit = body.limit or settings.default_limit
    return ParsedRequest(
        body=body,
        deployment=deployment,
        bundle=bundle,
        popularity=deployment.contents.popularity,
        history=history,
        query=query,
        prompt=_encode(bundle, history.events, query),
        limit=limit,
        beam_width=body.beam_width or max(limit, settings.default_beam_width),
        allowed=allowed_items(body, history.rows, bundle.index),
        deadline=started + (body.timeout_ms or settings.request_timeout_ms) / 1000,
        parse_seconds=time.perf_counter() - began,
    )


def _encode(bundle: Bundle, events: Sequence[Event], query: str | None) -> Prompt:
    try:
        return bundle.encoder.prompt(events, query)
    except SequenceError as error:
        raise InvalidRequestError("The text of a query cannot be read by the model.") from error
