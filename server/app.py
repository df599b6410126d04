"""The HTTP application: which path does what."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Coroutine
from contextlib import asynccontextmanager
from importlib import metadata
from typing import Any, TypeVar

from fastapi import APIRouter, Depends, FastAPI, Request, Response
from fastapi.middleware.cors import CORSMiddleware
from prometheus_client import CONTENT_TYPE_LATEST

from index.bundle import Bundle
from index.filters import MAX_NAMED
from server import errors, openapi
from server.admin import administration
from server.answers import Answer, BatchAnswer, Health, Info, Limits
from server.body import JsonRoute
from server.engine.contract import Engine, EngineError
from server.errors import ClientGoneError, NotReadyError
from server.items import lookup
from server.keys import BEARER, split
from server.metrics import Metrics
from server.middleware import RequestMiddleware
from server.paths import VERSION
from server.playground import playground
from server.readiness import Readiness
from server.schemas import BatchRequest, RecommendRequest, SearchRequest
from server.served import Reopen, Served
from server.service import Service
from server.settings import Settings

T = TypeVar("T")


def create_app(bundle: Bundle, engine: Engine, settings: Settings, reopen: Reopen | None = None) -> FastAPI:
    """An application that answers from `bundle`, and later versions of its index, by `engine`.

    The engine is used by one thread of the application, between its start-up and its shutdown; an
    `EngineProcess` is started and ended with it. reopen: see `Served`; without it the bundle cannot be swapped.
    `app.state.readiness` is the application's `Readiness`; whoever runs it may set it to draining.
    `app.state.refused` is the `EngineError` that kept it from starting, if one did.
    """
    metrics = Metrics()
    served = Served(bundle, engine, metrics, settings, reopen)
    readiness = Readiness(lambda: served.current.scheduler.running)
    service = Service(served, metrics, settings)
    metrics.watch(
        queue_depth=lambda: served.current.scheduler.depth,
        queue_limit=lambda: served.current.scheduler.queue_limit,
        ready=lambda: readiness.ready,
        engine_up=lambda: served.current.scheduler.running,
    )

    @asynccontextmanager
    async def lifespan(_: FastAPI) -> AsyncIterator[None]:
        try:
            try:
                await served.start()
            except EngineError as error:
                app.state.refused = error
                raise
            readiness.stage = "ready"
            yield
        finally:
            readiness.stage = "draining"
            await served.stop()

    app = FastAPI(
        title="GEMS",
        summary="One language model that both searches and recommends.",
        version=metadata.version("gems-sr"),
        lifespan=lifespan,
        redoc_url=None,
        redirect_slashes=False,
    )
    app.state.readiness = readiness
    app.state.refused = None
    app.state.settings = settings
    ranking = _ranking(service)
    app.include_router(ranking, prefix=VERSION)
    app.include_router(ranking, include_in_schema=False)  # aliases
    titles = lookup(served)
    app.include_router(titles, prefix=VERSION)
    app.include_router(titles, include_in_schema=False)
    if settings.playground:
        app.include_router(playground())
    app.include_router(_operations(served, metrics, readiness, settings))
    app.include_router(administration(served, settings))
    app.add_middleware(
        RequestMiddleware,
        metrics=metrics,
        admit=service.admit,
        keys=split(settings.api_keys.get_secret_value()),
    )
    if settings.cors_origins:
        app.add_middleware(
            CORSMiddleware,
            allow_origins=split(settings.cors_origins),
            allow_methods=["GET", "POST"],
            allow_headers=["Authorization", "Content-Type"],
            expose_headers=["X-Request-ID", "Retry-After"],
        )
    errors.install(app)
    openapi.install(app)
    return app


def _ranking(service: Service) -> APIRouter:
    router = APIRouter(
        route_class=JsonRoute,
        tags=["ranking"],
        responses=openapi.ranking_problems(),
        dependencies=[Depends(BEARER)],
    )

    async def answer(body: RecommendRequest, request: Request) -> Answer:
        state = request.state
        return await _unless_gone(request, service.answer(body, state.request_id, state.started))

    @router.post(
        "/search",
        operation_id="search",
        summary="Items for a query, in the light of a history",
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
        return await _unless_gone(request, service.answer_batch(body, state.request_id, state.started))

    return router


def _operations(served: Served, metrics: Metrics, readiness: Readiness, settings: Settings) -> APIRouter:
    router = APIRouter(tags=["operations"])

    @router.get("/health/live", summary="The process runs")
    async def live() -> Health:
        return Health(status="live")

    @router.get("/health/ready", summary="The server wants requests", responses=openapi.readiness_problems())
    async def ready() -> Health:
        if not readiness.ready:
            raise NotReadyError(f"The server is {readiness.status}.")
        return Health(status=readiness.status)

    @router.get("/metrics", summary="Prometheus metrics", response_class=Response)
    async def scrape() -> Response:
        return Response(metrics.render(), media_type=CONTENT_TYPE_LATEST)

    @router.get("/info", summary="What is being served")
    async def info() -> Info:
        return _info(served.current.bundle, settings)

    return router


def _info(bundle: Bundle, settings: Settings) -> Info:
    info = bundle.info
    return Info(
        version=metadata.version("gems-sr"),
        bundle_id=info.bundle_id,
        index_version=bundle.index.version,
        created=info.created,
        code_version=info.code_version,
        items=len(bundle.index.catalogue) - len(bundle.index.removed),
        scheme=info.scheme,
        codebook_sizes=list(info.codebook_sizes),
        normalisation=info.normalisation,
        max_events=info.max_events,
        max_query_tokens=info.max_query_tokens,
        attributes=bundle.index.filters.names[:MAX_NAMED],
        key_required=bool(split(settings.api_keys.get_secret_value())),
        limits=Limits(**{name: getattr(settings, name) for name in Limits.model_fields}),
        data=info.data,
        training=info.training,
    )


async def _unless_gone(request: Request, work: Coroutine[Any, Any, T]) -> T:
    """The result of `work`, which is cancelled if the client hangs up first."""
    working = asyncio.create_task(work)
    watching = asyncio.create_task(_hang_up(request))
    try:
        await asyncio.wait((working, watching), return_when=asyncio.FIRST_COMPLETED)
        if working.done():
            return working.result()
        raise ClientGoneError("The client hung up before the answer.")
    finally:
        working.cancel()
        watching.cancel()
        await asyncio.gather(working, watching, return_exceptions=True)


async def _hang_up(request: Request) -> None:
    """Return when the client has closed the connection."""
    while (await request.receive())["type"] != "http.disconnect":
        pass
