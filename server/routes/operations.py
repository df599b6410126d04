"""The endpoints for operators: health, metrics, and a description of the bundle."""

from __future__ import annotations

from importlib import metadata

from fastapi import APIRouter, Response
from prometheus_client import CONTENT_TYPE_LATEST

from index.bundle.bundle import Bundle
from index.trie.filters import MAX_NAMED
from server.api import openapi
from server.api.errors import NotReadyError
from server.api.responses import Health, Info, Limits
from server.serving.deployments import Deployments
from server.serving.readiness import Readiness
from server.settings import Settings, split
from server.telemetry.metrics import Metrics


def operations(
    deployments: Deployments, metrics: Metrics, readiness: Readiness, settings: Settings
) -> APIRouter:
    """Return a router of `/health/live`, `/health/ready`, `/metrics` and `/info`."""
    router = APIRouter(tags=["operations"])

    @router.get("/health/live", summary="Whether the process runs")
    @router.head("/health/live", include_in_schema=False)
    async def live() -> Health:
        return Health(status="live")

    @router.get("/health/ready", summary="Whether it is ready", responses=openapi.readiness_problems())
    @router.head("/health/ready", include_in_schema=False)
    async def ready() -> Health:
        if not readiness.ready:
            raise NotReadyError(f"The server is {readiness.status}.")
        return Health(status=readiness.status)

    @router.get("/metrics", summary="Prometheus metrics", response_class=Response)
    @router.head("/metrics", include_in_schema=False)
    async def scrape() -> Response:
        return Response(metrics.render(), media_type=CONTENT_TYPE_LATEST)

    @router.get("/info", summary="The bundle and the limits of the server")
    @router.head("/info", include_in_schema=False)
    async def info() -> Info:
        return _info(deployments.current.bundle, settings)

    return router


def _info(bundle: Bundle, settings: Settings) -> Info:
    info = bundle.info
    fusion = None if bundle.index.pool is None else bundle.index.pool.fusion
    if fusion is not None and not fusion.tasks:
        fusion = None
    return Info(
        version=metadata.version("gems-sr"),
        bundle_id=info.bundle_id,
        index_version=bundle.index.version,
        created=info.created,
        code_version=info.code_version,
        items=bundle.index.living_count,
        scheme=info.scheme,
        codebook_sizes=list(info.codebook_sizes),
        normalisation=info.normalisation,
        max_events=info.max_events,
        max_query_tokens=info.max_query_tokens,
        attributes=bundle.index.filters.names[:MAX_NAMED],
        ranking="beam" if fusion is None else "pool",
        min_relevance={} if fusion is None else {t.value: f.cutoff for t, f in fusion.tasks.items()},
        remembers_people=bool(settings.people_store),
        key_required=bool(split(settings.api_keys.get_secret_value())),
        limits=Limits(**{name: getattr(settings, name) for name in Limits.model_fields}),
        data=info.data,
        training=info.training,
    )
