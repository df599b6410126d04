"""The bodies about people: events that are sent, and what is kept of a person."""

from __future__ import annotations

import time
from typing import Annotated, Any

from pydantic import BaseModel, ConfigDict, FailFast, Field, field_validator, model_validator

from index.catalogue import MAX_ID_CHARS
from server.api.filter import Number
from server.api.requests import QUERY_CEILING, Body, ItemId, TaskName, UserId

MAX_EVENTS = 1000  # of a request
MAX_AHEAD = 86_400  # seconds by which the clock of a client may be ahead


class EventEntry(BaseModel):
    """Something that a person did."""

    model_config = ConfigDict(strict=True, extra="forbid", frozen=True)

    event_id: str = Field(
        min_length=1,
        max_length=MAX_ID_CHARS,
        description="Chosen by you, unique to the person: an event that is sent again is stored once.",
    )
    user_id: UserId
    item_id: ItemId
    behaviour: TaskName | None = "recommendation"
    query: str | None = Field(
        None, max_length=QUERY_CEILING, description="The typed text; required if the behaviour is `search`."
    )
    timestamp: Annotated[Number, Field(ge=0)] | None = Field(
        None, description="Seconds since 1970; default: the time of the server."
    )

    @model_validator(mode="after")
    def _searched(self) -> EventEntry:
        if self.behaviour == "search" and not (self.query and self.query.strip()):
            raise ValueError("an event of behaviour 'search' needs a non-blank 'query'")
        return self

    @field_validator("timestamp")
    @classmethod
    def _has_happened(cls, timestamp: float | None) -> float | None:
        if timestamp is not None and timestamp > time.time() + MAX_AHEAD:
            raise ValueError("more than a day in the future; a timestamp is in seconds, not in milliseconds")
        return timestamp


class EventsRequest(Body):
    """Events of any people, in any order. All are stored, or none."""

    model_config = ConfigDict(
        json_schema_extra={
            "examples": [
                {
                    "events": [
                        {"event_id": "e1", "user_id": "u1", "item_id": "1", "timestamp": 1767225600},
                        {
                            "event_id": "e2",
                            "user_id": "u1",
                            "item_id": "2",
                            "behaviour": "search",
                            "query": "robots",
                        },
                    ]
                }
            ]
        }
    )

    events: Annotated[list[EventEntry], FailFast()] = Field(min_length=1, max_length=MAX_EVENTS)

    @field_validator("events", mode="before")
    @classmethod
    def _few(cls, events: Any) -> Any:
        """Refuse a list that is too long before its entries are validated."""
        if isinstance(events, list) and len(events) > MAX_EVENTS:
            raise ValueError(f"more than {MAX_EVENTS} events; send them in several requests")
        return events


class EventsAnswer(BaseModel):
    """Answer to a request that sends events; the three counts add up to their number.

    stored: they will survive.
    duplicates: an event of the same person with this `event_id` was there already, and was left as it is.
    outdated: older than what is kept.
    unknown_items: the first few distinct ids that the catalogue does not hold; their events are kept all the same.
    unknown_count: number of events with such an item.
    """

    request_id: str
    stored: int
    duplicates: int
    outdated: int
    unknown_items: list[str] = []
    unknown_count: int = 0


class KeptEvent(BaseModel):
    """An event as it is kept. timestamp: seconds since 1970."""

    event_id: str
    item_id: str
    behaviour: TaskName
    query: str | None = None
    timestamp: float


class Person(BaseModel):
    """Everything that is kept of a person, oldest first."""

    user_id: str
    events: list[KeptEvent]


class Forgotten(BaseModel):
    """The number of events that were kept of a person until now."""

    request_id: str
    events: int
