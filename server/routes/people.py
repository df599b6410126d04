"""The endpoints about people: events that they cause, and what is kept of one of them.

On a server without a store they answer 404.
"""

from __future__ import annotations

from typing import Annotated

from fastapi import APIRouter, Depends, Path, Request

from index.catalogue import MAX_ID_CHARS
from server.api import openapi
from server.api.errors import InvalidRequestError, NotFoundError
from server.api.events import EventEntry, EventsAnswer, EventsRequest, Forgotten, KeptEvent, Person
from server.api.paths import EVENTS, USERS
from server.people.interaction import Interaction
from server.people.people import People
from server.serving.deployments import Deployments
from server.settings import Settings
from server.telemetry.metrics import Metrics
from server.transport.body import JsonRoute
from server.transport.keys import BEARER

MAX_UNKNOWN_NAMED = 20  # ids in an answer; the count is always complete

UserIdInPath = Annotated[
    str, Path(min_length=1, max_length=MAX_ID_CHARS, description="The id of a person, percent-encoded.")
]


def remembering(
    people: People | None, deployments: Deployments, metrics: Metrics, settings: Settings
) -> APIRouter:
    """Return a router of the endpoints about people, without the version's prefix.

    people: None if the server remembers nobody.
    """
    router = APIRouter(route_class=JsonRoute, tags=["people"], dependencies=[Depends(BEARER)])

    def store() -> People:
        if people is None:
            raise NotFoundError("This server remembers nobody: GEMS_PEOPLE_STORE is not set.")
        return people

    @router.post(
        EVENTS,
        operation_id="events",
        summary="Remember what people did",
        responses=openapi.events_problems(),
    )
    async def events(body: EventsRequest, request: Request) -> EventsAnswer:
        kept = store()
        _check_queries(body, settings.max_query_chars)
        row = deployments.current.bundle.index.catalogue.row
        unknown = [event.item_id for event in body.events if row(event.item_id) is None]
        done = await kept.remember([_interaction(event) for event in body.events])
        metrics.unknown_event_items.inc(len(unknown))
        return EventsAnswer(
            request_id=request.state.request_id,
            stored=done.stored,
            duplicates=done.duplicates,
            outdated=done.outdated,
            unknown_items=list(dict.fromkeys(unknown))[:MAX_UNKNOWN_NAMED],
            unknown_count=len(unknown),
        )

    @router.get(
        f"{USERS}{{user_id}}",
        operation_id="person",
        summary="Everything that is kept of a person",
        responses=openapi.person_problems(),
    )
    @router.head(f"{USERS}{{user_id}}", include_in_schema=False)
    async def person(user_id: UserIdInPath) -> Person:
        found = await store().everything(user_id)
        if not found:
            raise NotFoundError("Nothing is kept of this person.")
        return Person(user_id=user_id, events=[_kept(each) for each in found])

    @router.delete(
        f"{USERS}{{user_id}}",
        operation_id="forget",
        summary="Forget a person",
        responses=openapi.person_problems(),
    )
    async def forget(user_id: UserIdInPath, request: Request) -> Forgotten:
        count = await store().forget(user_id)
        return Forgotten(request_id=request.state.request_id, events=count)

    return router


def _check_queries(body: EventsRequest, most: int) -> None:
    """Raise `InvalidRequestError` for a query that is longer than the server lets anybody search for."""
    for position, event in enumerate(body.events):
        if event.query is not None and len(event.query) > most:
            raise InvalidRequestError.at(f"events.{position}.query", f"at most {most} characters")


def _interaction(event: EventEntry) -> Interaction:
    query = event.query if event.behaviour == "search" else None
    return Interaction(event.user_id, event.event_id, event.item_id, query, event.timestamp)


def _kept(event: Interaction) -> KeptEvent:
    return KeptEvent(
        event_id=event.event_id,
        item_id=event.item_id,
        behaviour="recommendation" if event.query is None else "search",
        query=event.query,
        timestamp=event.timestamp or 0.0,
    )
