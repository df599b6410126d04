"""A request read with one index version of a deployment: rows, prompt, allowed items and a deadline."""

from __future__ import annotations

import time
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from itertools import islice

from index.bundle.bundle import Bundle
from index.pool.fusion import TaskFusion
from index.pool.pool import Pool
from index.popularity import Popularity
from index.sequence.encoder import Prompt, SequenceError
from index.sequence.events import Event, Task
from index.trie.allowed import Allowed
from server.api.errors import MAX_FIELD_ERRORS, InvalidRequestError
from server.api.requests import HistoryEntry, RecommendRequest, SearchRequest
from server.ranking.candidates import Candidates
from server.ranking.history import History
from server.ranking.selection import allowed_items
from server.settings import Settings


@dataclass(frozen=True, slots=True)
class ParsedRequest:
    """A validated request, read with the index version that it began with, to which it keeps.

    body: the request as it was sent.
    bundle: the one that answers, with the index version.
    popularity: of its items, to fall back on; None if that is not wanted, or the bundle holds no counts.
    stored: number of the history's first entries that came from the store of people; None without one.
    history, query: the person's events, and the text of a search; None for a recommendation.
    candidates: the only items that are ranked, if the request names any.
    prompt: tokens for the engine.
    limit, beam_width: requested values, or the server's defaults.
    allowed: items that may be returned.
    deadline: seconds on the clock of `time.perf_counter`.
    parse_seconds: time that reading took.
    """

    body: RecommendRequest
    bundle: Bundle
    popularity: Popularity | None
    stored: int | None
    history: History
    query: str | None
    candidates: Candidates
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
        """Number of events that the prompt holds."""
        return len(self.prompt.events)

    def why_fewer(self, found: int, irrelevant: int) -> str | None:
        """Return the reason why an answer holds fewer than `limit` items; None if it does not.

        found: items of the answer. irrelevant: items that `min_relevance` left out.
        """
        if found >= self.limit:
            return None
        if self.candidates.rows == []:
            return "the catalogue holds none of the candidates"
        if irrelevant:
            return f"min_relevance leaves out {_items(irrelevant)}"
        left, items = self.allowed.count, self.bundle.index.living_count
        if found < left:
            return f"the search ended with {_items(found)}"
        if left == items:
            return f"the catalogue holds only {_items(items)}"
        given = {
            "filter": self.body.filter is not None,
            "candidates": self.candidates.rows is not None,
            "exclude": bool(self.body.exclude),
            "exclude_history": self.body.excludes_history and bool(self.history.rows),
        }
        *others, last = [field for field, is_given in given.items() if is_given]
        fields = f"{', '.join(others)} and {last}" if others else last
        return f"{left} of the catalogue's {_items(items)} {'is' if left == 1 else 'are'} left by {fields}"

    @property
    def ranks_pool(self) -> bool:
        """Whether a pool of candidates is ranked, not the beam alone."""
        return self.body.ranking != "beam" and fusion_of(self.bundle, self.task) is not None

    @property
    def starts_cold(self) -> bool:
        """Whether popularity answers in place of the model, because no item of the history is known."""
        return self.popularity is not None and self.query is None and not self.history.events

    def pool(self) -> Pool | None:
        """Return the candidates besides the beam; None if the beam alone is ranked."""
        index = self.bundle.index.pool
        if index is None or not self.ranks_pool:
            return None
        return Pool.gather(index, self.allowed, self.query, self.history.rows)

    def is_fresh(self, row: int) -> bool:
        """Whether a pool is ranked, and the model does not know an item."""
        index = self.bundle.index.pool
        return index is not None and self.ranks_pool and bool(index.fresh[row])

    def remaining(self) -> float:
        """Return the seconds until the deadline."""
        return self.deadline - time.perf_counter()


def _items(count: int) -> str:
    return "1 item" if count == 1 else f"{count} items"


def fusion_of(bundle: Bundle, task: Task) -> TaskFusion | None:
    """Return the weights of a task's pool; None if the bundle has none."""
    pool = bundle.index.pool
    return None if pool is None or pool.fusion is None else pool.fusion.tasks.get(task)


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
    body: RecommendRequest,
    bundle: Bundle,
    popularity: Popularity | None,
    settings: Settings,
    started: float,
    stored: Sequence[HistoryEntry] | None = None,
) -> ParsedRequest:
    """Read a request that keeps the caps.

    bundle: the one that answers. popularity: of its items, if it holds counts.
    started: time at which it arrived, on the clock of `time.perf_counter`.
    stored: what the store of people holds of the person, before the history that was sent; None without a store.
    Raises `InvalidRequestError`.
    """
    began = time.perf_counter()
    if body.strict:
        _refuse_unknown(body, bundle)
    query = body.query if isinstance(body, SearchRequest) else None
    task = Task.RECOMMENDATION if query is None else Task.SEARCH
    _check_ranking(body, bundle)
    candidates = Candidates.read(body.candidates, bundle.index.catalogue)
    history = History.read([*(stored or ()), *body.history], bundle, settings.max_query_chars)
    limit = body.limit or settings.default_limit
    return ParsedRequest(
        body=body,
        bundle=bundle,
        popularity=popularity if (body.fallback or settings.fallback) == "popularity" else None,
        stored=None if stored is None else len(stored),
        history=history,
        query=query,
        candidates=candidates,
        prompt=_encode(bundle, history.events, query),
        limit=limit,
        beam_width=body.beam_width or max(limit, settings.default_beam_width),
        allowed=allowed_items(body, history.rows, candidates, bundle.index, task),
        deadline=started + (body.timeout_ms or settings.request_timeout_ms) / 1000,
        parse_seconds=time.perf_counter() - began,
    )


def _check_ranking(body: RecommendRequest, bundle: Bundle) -> None:
    """Raise `InvalidRequestError` if a pool is needed that the bundle has no weights for."""
    task = Task.SEARCH if isinstance(body, SearchRequest) else Task.RECOMMENDATION
    has_pool = fusion_of(bundle, task) is not None
    if body.ranking == "pool" and not has_pool:
        raise InvalidRequestError.at("ranking", "this bundle ranks by the beam alone; see 'gems fuse'")
    if body.min_relevance is not None and (body.ranking == "beam" or not has_pool):
        raise InvalidRequestError.at("min_relevance", "only items of a ranked pool have a relevance")


def _refuse_unknown(body: RecommendRequest, bundle: Bundle) -> None:
    """Raise `InvalidRequestError` with the places of the first ids that the catalogue does not hold."""
    known = bundle.index.catalogue.row
    unknown = (place for place, item_id in _named(body) if known(item_id) is None)
    first = dict.fromkeys(islice(unknown, MAX_FIELD_ERRORS), "the catalogue holds no such item")
    if first:
        raise InvalidRequestError.of(first)


def _named(body: RecommendRequest) -> Iterator[tuple[str, str]]:
    """Yield the place and the id of every item that a request names."""
    for position, entry in enumerate(body.history):
        yield f"history.{position}.item_id", entry.item_id
    for field, item_ids in (("exclude", body.exclude), ("candidates", body.candidates or [])):
        for position, item_id in enumerate(item_ids):
            yield f"{field}.{position}", item_id


def _encode(bundle: Bundle, events: Sequence[Event], query: str | None) -> Prompt:
    try:
        return bundle.encoder.prompt(events, query)
    except SequenceError as error:
        raise InvalidRequestError("The text of a query cannot be read by the model.") from error
