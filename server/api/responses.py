"""What goes back over the wire: answers, problems, and what the server says of itself."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, Literal

from pydantic import BaseModel, Field

from server.api.requests import TaskName

FallbackReason = Literal["cold_start", "engine_failed", "engine_unavailable", "deadline_exceeded"]


class RankedItem(BaseModel):
    """One item of an answer. score: log-probability of the item's identifier; of a popular item, the logarithm
    of its share of all interactions."""

    rank: int
    item_id: str
    title: str
    score: float
    source: Literal["model", "popularity"]


class Dropped(BaseModel):
    """What of the history was not used.

    unknown_items: distinct ids that the catalogue does not hold, the first few of them.
    unknown_count: how many history entries named an unknown item.
    old_events: how many of the oldest known entries did not fit the model's prompt.
    """

    unknown_items: list[str] = []
    unknown_count: int = 0
    old_events: int = 0


class Timings(BaseModel):
    """Milliseconds. A step of the engine counts for every request that took part in it."""

    queue: float
    tokenise: float
    prefill: float
    decode: float
    head: float
    trie: float
    explain: float
    total: float


class HistoryEffect(BaseModel):
    """position: of the entry in the history as it was sent, from 0. effect: by how much the entry raises the
    score of the explained item, in nats."""

    position: int
    item_id: str
    effect: float


class Explanation(BaseModel):
    """Which history entries mattered for the first item: each is left out once, and the item scored again.

    history: strongest effect first. unexplained: older entries that were read, too, but not left out.
    """

    item_id: str
    history: list[HistoryEffect]
    unexplained: int


class Answer(BaseModel):
    """The answer to a search or a recommendation."""

    request_id: str
    bundle_id: str
    index_version: str
    task: TaskName
    items: list[RankedItem]
    fewer_than_limit: str | None = Field(
        description="Why fewer than `limit` items came back; null if they did not."
    )
    fallback: FallbackReason | None = Field(
        description="Why popularity answered instead of the model; null if the model did."
    )
    dropped: Dropped
    explanation: Explanation | None = Field(
        description="Null unless asked for, or if there is nothing to explain."
    )
    cached_tokens: int = Field(description="Tokens of the prompt that were known from earlier requests.")
    timings_ms: Timings


class FieldError(BaseModel):
    """where: path of the field in the body; message: what to mend."""

    where: str
    message: str


class Problem(BaseModel):
    """An error (RFC 9457, `application/problem+json`). It never repeats what was sent."""

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
    """The answer to a lookup: by title, those that begin with the text first, else in the order of the ids."""

    items: list[FoundItem]


class Health(BaseModel):
    """status: `live`, `ready`, `starting`, `restarting` or `draining`."""

    status: str


class Limits(BaseModel):
    """The caps that a client has to keep."""

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
    """What is being served. attributes: the first few of those that a filter can name. key_required: whether rankings
    ask for one of the API keys. data, training: the bundle's own description."""

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
    key_required: bool
    limits: Limits
    data: Mapping[str, Any]
    training: Mapping[str, Any]


class IndexState(BaseModel):
    """Which version of the index is served. items: those that may be recommended."""

    bundle_id: str
    index_version: str
    previous_version: str
    items: int


class BundleState(BaseModel):
    """Which bundle is served. items: those that may be recommended."""

    bundle_id: str
    previous_bundle_id: str
    index_version: str
    items: int
