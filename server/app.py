"""The HTTP application: which path does what."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Coroutine
from contextlib import asynccontextmanager
from importlib import metadata
from typing import Any

from fastapi import APIRouter, FastAPI, Request, Response
from prometheus_client import CONTENT_TYPE_LATEST

from index.bundle import Bundle
from server import errors, openapi
from server.admin import administration
from server.body import JsonRoute
from server.engine.contract import Engine
from server.errors import ClientGoneError, NotReadyError
from server.metrics import Metrics
from server.middleware import RequestMiddleware
from server.readiness import Readiness
from server.scheduler import Scheduler
from server.schemas import Answer, Health, Info, Limits, RecommendRequest, SearchRequest
from server.served import Served
from server.service import Service
from server.settings import Settings


def create_app(bundle: Bundle, engine: Engine, settings: Settings) -> FastAPI:
    """An application that answers from `bundle`, and later versions of its index, by `engine`.

    The engine is used by one thread of the application, between its start-up and its shutdown.
    `app.state.readiness` is the application's `Readiness`; whoever runs it may set it to draining.
    """
    metrics = Metrics()
    readiness = Readiness()
    scheduler = Scheduler(
        engine,
        metrics,
        max_batch_size=settings.max_batch_size,
        window=settings.batch_window_ms / 1000,
        queue_limit=settings.queue_limit,
    )
    served = Served(bundle, metrics)
    service = Service(served, scheduler, metrics, settings)
    metrics.watch(queue_depth=lambda: scheduler.depth, ready=lambda: readiness.ready)

    @asynccontextmanager
    async def lifespan(_: FastAPI) -> AsyncIterator[None]:
        try:
            await scheduler.start(service.warm_up_requests())
            readiness.status = "ready"
            yield
        finally:
            readiness.status = "draining"
            await scheduler.stop(settings.shutdown_seconds)

    app = FastAPI(
        title="GEMS",
        summary="One language model that both searches and recommends.",
        version=metadata.version("gems-sr"),
        lifespan=lifespan,
        redoc_url=None,
        redirect_slashes=False,
    )
    app.state.readiness = readiness
    app.state.max_body_bytes = settings.max_body_bytes
    app.include_router(_ranking(service))
    app.include_router(_operations(served, metrics, readiness, settings))
    app.include_router(administration(served, settings))
    app.add_middleware(RequestMiddleware, metrics=metrics)
    errors.install(app)
    openapi.install(app)
    return app


def _ranking(service: Service) -> APIRouter:
    router = APIRouter(route_class=JsonRoute, tags=["ranking"], responses=openapi.problems(ranking=True))

    async def answer(body: RecommendRequest, request: Request) -> Answer:
        state = request.state
        return await _unless_gone(request, service.answer(body, state.request_id, state.started))

    @router.post("/search", summary="Items for a query, in the light of a history")
    async def search(body: SearchRequest, request: Request) -> Answer:
        return await answer(body, request)

    @router.post("/recommend", summary="Items that the person may want next")
    async def recommend(body: RecommendRequest, request: Request) -> Answer:
        return await answer(body, request)

    return router


def _operations(served: Served, metrics: Metrics, readiness: Readiness, settings: Settings) -> APIRouter:
    router = APIRouter(tags=["operations"])

    @router.get("/health/live", summary="The process runs")
    async def live() -> Health:
        return Health(status="live")

    @router.get(
        "/health/ready", summary="The server wants requests", responses=openapi.problems(ranking=False)
    )
    async def ready() -> Health:
        if not readiness.ready:
            raise NotReadyError(f"The server is {readiness.status}.")
        return Health(status=readiness.status)

    @router.get("/metrics", summary="Prometheus metrics", response_class=Response)
    async def scrape() -> Response:
        return Response(metrics.render(), media_type=CONTENT_TYPE_LATEST)

    @router.get("/info", summary="What is being served")
    async def info() -> Info:
        return _info(served.bundle, settings)

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
        limits=Limits(**{name: getattr(settings, name) for name in Limits.model_fields}),
        data=info.data,
        training=info.training,
    )


async def _unless_gone(request: Request, work: Coroutine[Any, Any, Answer]) -> Answer:
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
