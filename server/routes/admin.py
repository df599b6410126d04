"""The administration endpoints. They ask for the admin key; without one set, they answer 404."""

from __future__ import annotations

from fastapi import APIRouter, Depends, Request
from fastapi.security import HTTPBearer

from index.bundle.bundle import Bundle
from server.api import openapi
from server.api.errors import NotFoundError
from server.api.responses import BundleState, IndexState
from server.serving.deployments import Deployments
from server.settings import Settings
from server.transport.keys import authorise, bearer

BEARER = HTTPBearer(
    auto_error=False, description="The admin key, GEMS_ADMIN_KEY."
)  # for the description only


def administration(deployments: Deployments, settings: Settings) -> APIRouter:
    """Routes under `/admin`."""
    key = settings.admin_key.get_secret_value().strip()

    def administrator(request: Request) -> None:
        if not key:
            raise NotFoundError("See /docs for the paths that exist.")
        authorise(bearer(request.headers), [key])

    router = APIRouter(
        prefix="/admin",
        tags=["administration"],
        dependencies=[Depends(administrator), Depends(BEARER)],
        responses=openapi.administration_problems(),
    )

    @router.post("/index/refresh", summary="Serve the index version that is now the current one on disk")
    async def refresh_index() -> IndexState:
        before, bundle = await deployments.refresh_index()
        return IndexState(
            bundle_id=bundle.info.bundle_id,
            index_version=bundle.index.version,
            previous_version=before.index.version,
            items=_items(bundle),
        )

    @router.post(
        "/bundle/refresh", summary="Serve the bundle that is now at the path that was given at the start"
    )
    async def refresh_bundle() -> BundleState:
        before, bundle = await deployments.refresh_bundle()
        return BundleState(
            bundle_id=bundle.info.bundle_id,
            previous_bundle_id=before.info.bundle_id,
            index_version=bundle.index.version,
            items=_items(bundle),
        )

    return router


def _items(bundle: Bundle) -> int:
    return len(bundle.index.catalogue) - len(bundle.index.removed)
