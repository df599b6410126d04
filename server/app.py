"""The HTTP application: creates the components of the server and mounts the routes."""

from __future__ import annotations

from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from importlib import metadata

from fastapi import FastAPI
from fastapi.middleware.cors import CORSMiddleware
from starlette.types import ASGIApp

from index.bundle.bundle import Bundle
from server.api import errors, openapi
from server.api.paths import VERSION
from server.engine.contract import EngineError, HostedEngine
from server.people.open import open_store
from server.people.people import People
from server.people.store import Keep
from server.ranking.service import Service
from server.routes.admin import administration
from server.routes.docs import docs
from server.routes.items import lookup
from server.routes.operations import operations
from server.routes.people import remembering
from server.routes.playground import playground
from server.routes.ranking import ranking
from server.serving.deployments import Deployments, Reopen
from server.serving.readiness import Readiness
from server.settings import Settings, split
from server.telemetry.metrics import Metrics
from server.transport.middleware import RequestMiddleware
from server.transport.root_path import RootPathMiddleware


def create_app(
    bundle: Bundle,
    engine: HostedEngine,
    settings: Settings,
    reopen: Reopen | None = None,
    traced: Callable[[ASGIApp], ASGIApp] | None = None,
) -> FastAPI:
    """Return an application that answers from `bundle`, and from later versions of its index.

    engine: used by one thread while the application runs. An `EngineProcess` starts and ends with the application.
    reopen: opens the bundle again, see `Deployments`; without it the bundle cannot be swapped.
    traced: returns its argument with a span around each ranking request, see `Spans.around`.

    Raises `StoreRefusedError` if the settings name a store of people that cannot be used.

    `app.state.readiness` is the application's `Readiness`; the caller may set its stage to "draining".
    `app.state.refused` is the `EngineError` that prevented the start, or None.
    """
    metrics = Metrics()
    deployments = Deployments(bundle, engine, metrics, settings, reopen)
    readiness = Readiness(lambda: deployments.current.scheduler.running)
    people = _people(deployments, metrics, settings)
    service = Service(deployments, people, metrics, settings)
    metrics.watch(
        queue_depth=lambda: deployments.current.scheduler.depth,
        queue_limit=lambda: deployments.current.scheduler.queue_limit,
        ready=lambda: readiness.ready,
        engine_up=lambda: deployments.current.scheduler.running,
    )

    @asynccontextmanager
    async def lifespan(_: FastAPI) -> AsyncIterator[None]:
        try:
            try:
                await deployments.start()
                if people is not None:
                    people.start()
            except EngineError as error:
                app.state.refused = error
                raise
            readiness.stage = "ready"
            yield
        finally:
            readiness.stage = "draining"
            await deployments.stop()
            if people is not None:
                await people.stop()

    app = FastAPI(
        title="GEMS",
        summary="One language model that both searches and recommends.",
        version=metadata.version("gems-sr"),
        lifespan=lifespan,
        servers=[{"url": settings.root_path}] if settings.root_path else None,
        docs_url=None,  # FastAPI's page loads Swagger UI from another host; ours is `server.routes.docs`
        redoc_url=None,
        redirect_slashes=False,
    )
    app.state.readiness = readiness
    app.state.refused = None
    app.state.settings = settings
    ranked = ranking(service)
    app.include_router(ranked, prefix=VERSION)
    app.include_router(ranked, include_in_schema=False)  # aliases
    titles = lookup(deployments)
    app.include_router(titles, prefix=VERSION)
    app.include_router(titles, include_in_schema=False)
    remembered = remembering(people, deployments, metrics, settings)
    app.include_router(remembered, prefix=VERSION)
    app.include_router(remembered, include_in_schema=False)
    app.include_router(docs())
    if settings.playground:
        app.include_router(playground())
    app.include_router(operations(deployments, metrics, readiness, settings))
    app.include_router(administration(deployments, settings))
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
            allow_headers=["Authorization", "Content-Type", "X-Request-ID", "traceparent"],
            expose_headers=["X-Request-ID", "Retry-After"],
        )
    if traced is not None:
        app.add_middleware(traced)
    app.add_middleware(RootPathMiddleware, root_path=settings.root_path)  # around all the others
    errors.install(app)
    openapi.install(app)
    return app


def _people(deployments: Deployments, metrics: Metrics, settings: Settings) -> People | None:
    """Return the people who are remembered; None if the settings name no store. Raises `StoreRefusedError`."""
    if not settings.people_store:
        return None
    keep = Keep(settings.people_events, settings.people_days * 86_400)
    store = open_store(settings.people_store, keep)
    return People(store, metrics, settings.request_timeout_ms / 1000, deployments.forget)
