"""The ranking endpoints: `/search`, `/recommend` and `/batch`. A request is cancelled if its client disconnects."""

from __future__ import annotations

import asyncio
from collections.abc import Coroutine
from typing import Any, TypeVar

from fastapi import APIRouter, Depends, Request

from server.api import openapi
from server.api.errors import ClientGoneError
from server.api.requests import BatchRequest, RecommendRequest, SearchRequest
from server.api.responses import Answer, BatchAnswer
from server.ranking.service import Service
from server.transport.body import JsonRoute
from server.transport.keys import BEARER

T = TypeVar("T")


def ranking(service: Service) -> APIRouter:
    """Return a router of the ranking endpoints, without the version's prefix."""
    router = APIRouter(
        route_class=JsonRoute,
        tags=["ranking"],
        responses=openapi.ranking_problems(),
        dependencies=[Depends(BEARER)],
    )

    async def answer(body: RecommendRequest, request: Request) -> Answer:
        state = request.state
        return await _cancel_on_disconnect(request, service.answer(body, state.request_id, state.started))

    @router.post(
        "/search",
        operation_id="search",
        summary="Items for a query, given a history",
        responses=openapi.onwards(),
    )
    async def search(body: SearchRequest, request: Request) -> Answer:
        return await answer(body, request)

    @router.post(
        "/recommend",
        operation_id="recommend",
        summary="Items that the person may want next",
        responses=openapi.onwards(),
    )
    async def recommend(body: RecommendRequest, request: Request) -> Answer:
        return await answer(body, request)

    @router.post(
        "/batch", operation_id="batch", summary="Several searches and recommendations in one request"
    )
    async def batch(body: BatchRequest, request: Request) -> BatchAnswer:
        state = request.state
        return await _cancel_on_disconnect(
            request, service.answer_batch(body, state.request_id, state.started)
        )

    return router


async def _cancel_on_disconnect(request: Request, work: Coroutine[Any, Any, T]) -> T:
    """Return the result of `work`; cancel it if the client disconnects first.

    Raises `ClientGoneError` if the client disconnects.
    """
    working = asyncio.create_task(work)
    watching = asyncio.create_task(_disconnected(request))
    try:
        await asyncio.wait((working, watching), return_when=asyncio.FIRST_COMPLETED)
        if working.done():
            return working.result()
        raise ClientGoneError("The client hung up before the answer.")
    finally:
        working.cancel()
        watching.cancel()
        await asyncio.gather(working, watching, return_exceptions=True)


async def _disconnected(request: Request) -> None:
    """Return when the client has closed the connection."""
    while (await request.receive())["type"] != "http.disconnect":
        pass
