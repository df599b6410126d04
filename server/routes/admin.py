"""The administration endpoints. They require the admin key; on a server without an admin key they answer 404."""

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

# This only describes the key in the OpenAPI document; `authorise` checks it.
BEARER = HTTPBearer(auto_error=False, description="The admin key, GEMS_ADMIN_KEY.")


def administration(deployments: Deployments, settings: Settings) -> APIRouter:
    """Return a router of the routes under `/admin`."""
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

    @router.post("/index/refresh", summary="Serve the index version that is now current on disk")
    async def refresh_index() -> IndexState:
        return await deployments.refresh_index(_index_state)

    @router.post("/bundle/refresh", summary="Serve the bundle that is now at the path of the command line")
    async def refresh_bundle() -> BundleState:
        return await deployments.refresh_bundle(_bundle_state)

    return router


def _index_state(before: Bundle, now: Bundle) -> IndexState:
    return IndexState(
        bundle_id=now.info.bundle_id,
        index_version=now.index.version,
        previous_version=before.index.version,
        items=now.index.living_count,
    )


def _bundle_state(before: Bundle, now: Bundle) -> BundleState:
    return BundleState(
        bundle_id=now.info.bundle_id,
        previous_bundle_id=before.info.bundle_id,
        index_version=now.index.version,
        items=now.index.living_count,
    )
