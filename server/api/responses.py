"""The bodies of responses: answers, problems, and the state of the server."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, Literal

from pydantic import BaseModel, Field

from server.api.requests import TaskName

Source = Literal[
    "beam", "query_log", "transitions", "co_occurrence", "lexical", "fresh", "dense", "popularity"
]
RankingName = Literal["pool", "beam"]
StoredHistory = Literal["read", "unavailable"]
FallbackReason = Literal["cold_start", "engine_failed", "engine_unavailable", "deadline_exceeded"]


class RankedItem(BaseModel):
    """One item of an answer.

    rank: position in the answer, from 1.
    score: of the pool: weighted sum of signals, in nats; of the beam alone: log-probability of the item's identifier;
        of a popular item: logarithm of its share of all interactions.
    source: where the item came from: the beam, what people chose for this query, its words, items that were added after
        training, or popularity.
    relevance: probability that the person takes the item; only of a ranked pool.
    """

    rank: int
    item_id: str
    title: str
    score: float
    source: Source
    relevance: float | None = None


class Dropped(BaseModel):
    """The parts of the history and of the candidates that were not used.

    unknown_items: the first few distinct ids of the history that the catalogue does not contain.
    unknown_count: number of history entries that name an unknown item.
    old_events: number of the oldest known entries that did not fit into the model's prompt.
    new_events: number of entries with items newer than the model, which it does not read (identifiers of one code).
    unknown_candidates: the first few distinct candidates that the catalogue does not contain.
    unknown_candidates_count: number of candidates that the catalogue does not contain.
    """

    unknown_items: list[str] = []
    unknown_count: int = 0
    old_events: int = 0
    new_events: int = 0
    unknown_candidates: list[str] = []
    unknown_candidates_count: int = 0


class Timings(BaseModel):
    """Milliseconds of each stage and in total, in the order of time.

    A step of the engine counts for every request that took part in it.
    """

    history: float
    tokenise: float
    pool: float
    queue: float
    prefill: float
    decode: float
    head: float
    trie: float
    explain: float
    total: float


class HistoryEffect(BaseModel):
    """The effect of one history entry on the explained item.

    position: index of the entry in the history, from 0: stored entries first, then those that were sent.
    effect: increase of the model's log-probability of the item by the entry, in nats.
    """

    position: int
    item_id: str
    effect: float


class Explanation(BaseModel):
    """The signals and the history entries that mattered for the first item.

    signals: contribution of each signal to its score, in nats; only of a ranked pool.
    history: effects, strongest first: each entry is left out once, and the model scores the item again.
    unexplained: number of older entries that the model read, but that were not left out in turn.
    """

    item_id: str
    signals: dict[str, float] | None = None
    history: list[HistoryEffect]
    unexplained: int


class Answer(BaseModel):
    """The answer to a search or a recommendation."""

    request_id: str
    bundle_id: str
    index_version: str
    task: TaskName
    items: list[RankedItem]
    ranking: RankingName | None = Field(
        description="`pool`: candidates of several sources; `beam`: the model alone; null if popularity answered."
    )
    fewer_than_limit: str | None = Field(
        description="Why there are fewer than `limit` items; null if there are `limit` items."
    )
    fallback: FallbackReason | None = Field(
        description="Why popularity answered instead of the model; null if the model answered."
    )
    stored_history: StoredHistory | None = Field(
        None,
        description="`read`, or `unavailable` if the store of people was down and the answer does without it; null "
        "without `user_id`.",
    )
    stored_events: int = Field(
        0, description="Entries of the history that came from the store, before those sent."
    )
    dropped: Dropped
    explanation: Explanation | None = Field(
        description="Null if not requested, or if there is nothing to explain."
    )
    cached_tokens: int = Field(description="Tokens of the prompt that came from the prefix cache.")
    timings_ms: Timings


class FieldError(BaseModel):
    """One invalid field.

    where: path of the field in the body.
    message: what is wrong with it.
    """

    where: str
    message: str


class Problem(BaseModel):
    """An error (RFC 9457, `application/problem+json`). It never repeats a value of the request."""

    type: str
    title: str
    status: int
    detail: str
    request_id: str
    errors: list[FieldError] = []


class BatchAnswer(BaseModel):
    """Answers and problems in the order of the requests."""

    request_id: str
    answers: list[Answer | Problem]


class FoundItem(BaseModel):
    """An item that was looked up."""

    item_id: str
    title: str


class FoundItems(BaseModel):
    """The answer to a lookup. By title: titles that begin with the text come first. By id: in the order of the ids."""

    items: list[FoundItem]


class Health(BaseModel):
    """status: `live`, `ready`, `starting`, `restarting` or `draining`."""

    status: str


class Limits(BaseModel):
    """The limits for requests. Times are in milliseconds, sizes in bytes."""

    default_limit: int
    max_limit: int
    default_beam_width: int
    max_beam_width: int
    max_history: int
    max_query_chars: int
    max_body_bytes: int
    max_batch_requests: int
    max_explained: int
    request_timeout_ms: float


class Info(BaseModel):
    """The bundle and the limits of the server.

    attributes: the first few attributes that a filter can name.
    ranking: `pool` or `beam`, how a request is ranked that does not say.
    min_relevance: by task, a cut-off that hardly ever loses what people look for.
    key_required: whether ranking requests must name an API key.
    remembers_people: whether requests may name a `user_id`.
    data, training: descriptions from the bundle.
    """

    version: str
    bundle_id: str
    index_version: str
    created: str
    code_version: str
    items: int
    scheme: str
    codebook_sizes: list[int]
    normalisation: str
    max_events: int
    max_query_tokens: int
    attributes: list[str]
    ranking: RankingName
    min_relevance: Mapping[str, float]
    key_required: bool
    remembers_people: bool
    limits: Limits
    data: Mapping[str, Any]
    training: Mapping[str, Any]


class IndexState(BaseModel):
    """The index version that is served.

    items: number of items that may be recommended.
    """

    bundle_id: str
    index_version: str
    previous_version: str
    items: int


class BundleState(BaseModel):
    """The bundle that is served.

    items: number of items that may be recommended.
    """

    bundle_id: str
    previous_bundle_id: str
    index_version: str
    items: int
