"""The bodies of requests.

Validation is strict: no type coercion, no unknown fields. An optional field that is null counts as absent. The service
checks the limits that an operator can set; the ceilings here only bound the work of validation.
"""

from __future__ import annotations

from typing import Annotated, Any, ClassVar, Literal

from pydantic import AfterValidator, BaseModel, ConfigDict, FailFast, Field, field_validator, model_validator

from index.catalogue import MAX_ID_CHARS
from index.words import is_blank
from server.api import filter as filters
from server.api.filter import Filter

QUERY_CEILING = 10_000  # `max_query_chars` cannot be set higher
HISTORY_CEILING = 50_000  # `max_history` cannot be set higher
MAX_FIELDS = 32  # fields of one JSON object; no valid request has as many

BATCH_CEILING = 1000  # `max_batch_requests` cannot be set higher
ITEMS_CEILING = 10_000  # entries of `exclude` and of `candidates`

TaskName = Literal["search", "recommendation"]
Fallback = Literal["none", "popularity"]
ItemId = Annotated[str, Field(min_length=1, max_length=MAX_ID_CHARS)]
ItemIds = Annotated[list[ItemId], Field(max_length=ITEMS_CEILING)]


def addressable(user_id: str) -> str:
    """Return the id of a person if it can be a part of a path. Raises `ValueError`."""
    if not user_id.isprintable() or "/" in user_id or user_id in (".", ".."):
        raise ValueError(
            "an id of a person holds printable characters other than '/', and is not '.' or '..'"
        )
    return user_id


UserId = Annotated[
    str,
    Field(min_length=1, max_length=MAX_ID_CHARS, json_schema_extra={"pattern": r"^[^/\x00-\x1f\x7f]+$"}),
    AfterValidator(addressable),
]


def _crowded(data: Any) -> bool:
    return isinstance(data, dict) and len(data) > MAX_FIELDS


def _short(values: Any, most: int) -> Any:
    """Refuse a list that is too long before its entries are validated."""
    if isinstance(values, list) and len(values) > most:
        raise ValueError(f"more than {most} entries")
    return values


class HistoryEntry(BaseModel):
    """One past interaction."""

    # No validators in Python here: a history holds thousands of entries.

    model_config = ConfigDict(strict=True, extra="forbid", frozen=True)

    item_id: str = Field(min_length=1, max_length=MAX_ID_CHARS)
    behaviour: TaskName | None = "recommendation"
    query: str | None = Field(None, description="The typed text; required if the behaviour is `search`.")


History = Annotated[list[HistoryEntry], Field(max_length=HISTORY_CEILING)]


class Body(BaseModel):
    """The body of a request."""

    model_config = ConfigDict(strict=True, extra="forbid", frozen=True)

    @model_validator(mode="before")
    @classmethod
    def _few_fields(cls, data: Any) -> Any:
        """Report one error for an object with 100,000 unknown fields, instead of 100,000 errors."""
        if _crowded(data):
            raise ValueError("the object has too many fields")
        return data


class RecommendRequest(Body):
    """A recommendation: the items that this person may want next."""

    model_config = ConfigDict(  # pydantic merges it with the parent's
        json_schema_extra={
            "examples": [
                {"history": [{"item_id": "1"}, {"item_id": "2"}], "limit": 5},
                {"history": [{"item_id": "1"}], "filter": {"categories": ["Comedy"], "year": {"gte": 1990}}},
            ]
        },
    )

    EXCLUDES_HISTORY: ClassVar[bool] = True  # if `exclude_history` is not given

    history: Annotated[History, FailFast()] = Field(
        default=[], description="Past interactions, oldest first; may be empty."
    )
    user_id: UserId | None = Field(
        None,
        description="A person whose events the server was sent: they come before those of `history`.",
    )
    limit: int | None = Field(None, ge=1, description="Items to return at most; default: `default_limit`.")
    beam_width: int | None = Field(
        None,
        ge=1,
        description="Hypotheses per level; default: the larger of `limit` and `default_beam_width`.",
    )
    exclude_history: bool | None = Field(
        None,
        description="Leave out every item of the history; default: true for recommendations, false for searches.",
    )
    exclude: Annotated[ItemIds, FailFast()] = Field(
        default=[], description="Items to leave out; unknown ids exclude nothing."
    )
    candidates: ItemIds | None = Field(
        None, description="Rank only these items; unknown ids are dropped and reported. Empty: all items."
    )
    filter: Filter | None = Field(
        None,
        description="Maps attributes to a value, a list of values or a range of numbers; an item has to match all.",
    )
    strict: bool | None = Field(
        False, description="Refuse a request that names an unknown item in history, exclude or candidates."
    )
    ranking: Literal["pool", "beam"] | None = Field(
        None,
        description="`pool`: candidates by the model, by words, by what others chose, and new items; `beam`: by the "
        "model alone; default: `pool` where the bundle has weights for it.",
    )
    min_relevance: float | None = Field(
        None,
        ge=0,
        le=1,
        description="Leave out items that the person takes with a lower probability; only with `pool`.",
    )
    explain: bool | None = Field(
        False, description="Report which signals and history entries mattered for the first item."
    )
    timeout_ms: int | None = Field(
        None,
        ge=1,
        description="Milliseconds until the answer is useless; the server's limit is the default and the maximum.",
    )
    fallback: Fallback | None = Field(
        None,
        description="`popularity`: answer with popular items, labelled as such, if there is no history or the model "
        "fails; `none`: answer by the model or with an error; default: the server's setting.",
    )

    @property
    def excludes_history(self) -> bool:
        """Whether the items of the history are left out."""
        return self.EXCLUDES_HISTORY if self.exclude_history is None else self.exclude_history

    @field_validator("history", mode="before", json_schema_input_type=History | None)
    @classmethod
    def _bounded(cls, history: Any) -> Any:
        """Refuse a history that is too large before its entries are validated."""
        if isinstance(history, list):
            if len(history) > HISTORY_CEILING:
                raise ValueError(f"more than {HISTORY_CEILING} entries; send the newest")
            if any(map(_crowded, history)):
                raise ValueError("an entry has too many fields")
        return [] if history is None else history

    @field_validator("exclude", mode="before", json_schema_input_type=ItemIds | None)
    @classmethod
    def _few_excluded(cls, items: Any) -> Any:
        return [] if items is None else _short(items, ITEMS_CEILING)

    @field_validator("candidates", mode="before")
    @classmethod
    def _few_candidates(cls, items: Any) -> Any:
        return None if items == [] else _short(items, ITEMS_CEILING)

    @field_validator("filter", mode="before")
    @classmethod
    def _readable(cls, asked: Any) -> Any:
        return filters.given(asked)

    @field_validator("history")
    @classmethod
    def _searched(cls, history: list[HistoryEntry]) -> list[HistoryEntry]:
        for position, entry in enumerate(history):
            if entry.behaviour == "search" and not (entry.query and entry.query.strip()):
                raise ValueError(f"entry {position} is of behaviour 'search' and needs a non-blank 'query'")
        return history


class SearchRequest(RecommendRequest):
    """A search: the items that this person means by these words."""

    model_config = ConfigDict(
        json_schema_extra={
            "examples": [
                {
                    "query": "space adventure",
                    "history": [{"item_id": "1"}, {"item_id": "2", "behaviour": "search", "query": "robots"}],
                    "limit": 5,
                }
            ]
        }
    )

    EXCLUDES_HISTORY: ClassVar[bool] = False  # people search for what they know, too

    query: str = Field(max_length=QUERY_CEILING, json_schema_extra={"pattern": r"[^\W_]"})

    @field_validator("query")
    @classmethod
    def _not_blank(cls, query: str) -> str:
        if is_blank(query):
            raise ValueError("the query must not be blank; use /recommend to ask without one")
        return query


class SearchEntry(SearchRequest):
    """A search within a batch."""

    task: Literal["search"]


class RecommendEntry(RecommendRequest):
    """A recommendation within a batch."""

    task: Literal["recommendation"]


BatchEntry = Annotated[SearchEntry | RecommendEntry, Field(discriminator="task")]


class BatchRequest(Body):
    """Several requests in one call; each is answered or refused independently."""

    model_config = ConfigDict(
        json_schema_extra={
            "examples": [
                {
                    "requests": [
                        {"task": "search", "query": "space adventure", "limit": 5},
                        {"task": "recommendation", "history": [{"item_id": "1"}], "limit": 5},
                    ]
                }
            ]
        },
    )

    requests: Annotated[list[BatchEntry], FailFast()] = Field(min_length=1)

    @field_validator("requests", mode="before")
    @classmethod
    def _few_requests(cls, requests: Any) -> Any:
        return _short(requests, BATCH_CEILING)
