"""The bodies of requests.

Validation is strict: no type coercion, no unknown fields. The service checks the limits that an operator can set; the
ceilings here only bound the work of validation.
"""

from __future__ import annotations

import sys
from typing import Annotated, Any, Literal

from pydantic import BaseModel, ConfigDict, FailFast, Field, field_validator, model_validator

from index.trie.filters import BOUNDS, MAX_TEXT_CHARS
from index.words import is_blank

HISTORY_CEILING = 50_000  # `max_history` cannot be set higher
MAX_ITEM_ID_CHARS = 512
MAX_FIELDS = 32  # fields of one JSON object; no valid request has as many

BATCH_CEILING = 1000  # `max_batch_requests` cannot be set higher
ITEMS_CEILING = 10_000  # entries of `exclude` and of `candidates`
MAX_FILTER_VALUES = 1000  # values of one attribute

TaskName = Literal["search", "recommendation"]
Fallback = Literal["none", "popularity"]
ItemId = Annotated[str, Field(min_length=1, max_length=MAX_ITEM_ID_CHARS)]
Number = Annotated[float, Field(allow_inf_nan=False)]
FilterValue = Annotated[str, Field(max_length=MAX_TEXT_CHARS)] | bool | Number
FilterValues = Annotated[list[FilterValue], Field(min_length=1)]


def _crowded(data: Any) -> bool:
    return isinstance(data, dict) and len(data) > MAX_FIELDS


def _short(values: Any, most: int) -> Any:
    """Refuse a list that is too long before its entries are validated."""
    if isinstance(values, list) and len(values) > most:
        raise ValueError(f"more than {most} entries")
    return values


def _check_condition(condition: Any) -> None:
    if isinstance(condition, dict):
        if not condition or len(condition) > len(BOUNDS) or not set(condition) <= set(BOUNDS):
            raise ValueError(f"a range takes {', '.join(BOUNDS)}, at least one of them, and nothing else")
        if not all(_is_number(bound) for bound in condition.values()):
            raise ValueError("the bounds of a range are numbers that a double can hold")
        return
    values = condition if isinstance(condition, list) else [condition]
    if not 1 <= len(values) <= MAX_FILTER_VALUES:
        raise ValueError(f"a list of values holds 1 to {MAX_FILTER_VALUES} of them")
    for value in values:
        if isinstance(value, str):
            if len(value) > MAX_TEXT_CHARS:
                raise ValueError(f"a text to filter by has at most {MAX_TEXT_CHARS} characters")
        elif not isinstance(value, bool) and not _is_number(value):
            raise ValueError(
                "a value to filter by is a text, true, false, or a number that a double can hold"
            )


def _is_number(value: Any) -> bool:
    number = isinstance(value, int | float) and not isinstance(value, bool)
    return number and abs(value) <= sys.float_info.max


class HistoryEntry(BaseModel):
    """One past interaction."""

    # No validators in Python here: a history holds thousands of entries.

    model_config = ConfigDict(strict=True, extra="forbid", frozen=True)

    item_id: str = Field(min_length=1, max_length=MAX_ITEM_ID_CHARS)
    behaviour: TaskName = "recommendation"
    query: str | None = Field(None, description="The typed text; required if the behaviour is `search`.")


class NumberRange(BaseModel):
    """Range of numbers; an absent bound does not limit it."""

    model_config = ConfigDict(strict=True, extra="forbid", frozen=True)

    gt: Number | None = None
    gte: Number | None = None
    lt: Number | None = None
    lte: Number | None = None


FilterCondition = FilterValue | FilterValues | NumberRange


class _Body(BaseModel):
    """The body of a request."""

    model_config = ConfigDict(strict=True, extra="forbid", frozen=True)

    @model_validator(mode="before")
    @classmethod
    def _few_fields(cls, data: Any) -> Any:
        """Report one error for an object with 100,000 unknown fields, instead of 100,000 errors."""
        if _crowded(data):
            raise ValueError("the object has too many fields")
        return data


class RecommendRequest(_Body):
    """A recommendation: the items that this person may want next."""

    model_config = ConfigDict(  # pydantic merges it with the parent's
        json_schema_extra={
            "examples": [
                {"history": [{"item_id": "1"}, {"item_id": "2"}], "limit": 5, "exclude_history": True},
                {"history": [{"item_id": "1"}], "filter": {"categories": ["Comedy"], "year": {"gte": 1990}}},
            ]
        },
    )

    history: Annotated[list[HistoryEntry], FailFast()] = Field(
        default=[], description="Past interactions, oldest first; may be empty."
    )
    limit: int | None = Field(None, ge=1, description="Items to return at most; default: `default_limit`.")
    beam_width: int | None = Field(
        None,
        ge=1,
        description="Hypotheses per level; default: the larger of `limit` and `default_beam_width`.",
    )
    exclude_history: bool = Field(False, description="Leave out every item of the history.")
    exclude: Annotated[list[ItemId], FailFast()] = Field(
        default=[], description="Items to leave out; unknown ids are ignored."
    )
    candidates: list[ItemId] | None = Field(None, min_length=1, description="Rank only these items.")
    filter: dict[str, FilterCondition] | None = Field(
        None,
        description="Maps attributes to a value, a list of values or a range of numbers; an item has to match all.",
    )
    explain: bool = Field(False, description="Report which history entries mattered for the first item.")
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

    @field_validator("history", mode="before")
    @classmethod
    def _bounded(cls, history: Any) -> Any:
        """Refuse a history that is too large before its entries are validated."""
        if isinstance(history, list):
            if len(history) > HISTORY_CEILING:
                raise ValueError(f"more than {HISTORY_CEILING} entries; send the newest")
            if any(map(_crowded, history)):
                raise ValueError("an entry has too many fields")
        return history

    @field_validator("exclude", "candidates", mode="before")
    @classmethod
    def _few_items(cls, items: Any) -> Any:
        return _short(items, ITEMS_CEILING)

    @field_validator("filter", mode="before")
    @classmethod
    def _readable(cls, asked: Any) -> Any:
        """Report one clear error for the first invalid condition; pydantic reports one for each type of the union."""
        if isinstance(asked, dict):
            if not 1 <= len(asked) <= MAX_FIELDS:
                raise ValueError(f"a filter names 1 to {MAX_FIELDS} attributes")
            for condition in asked.values():
                _check_condition(condition)
        return asked

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

    query: str

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


class BatchRequest(_Body):
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
