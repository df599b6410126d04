"""The administration endpoints. They ask for the admin key; without one set, they do not exist."""

from __future__ import annotations

import hmac

from fastapi import APIRouter, Request

from server import openapi
from server.errors import NotFoundError, UnauthorizedError
from server.schemas import IndexState
from server.served import Served
from server.settings import Settings


def administration(served: Served, settings: Settings) -> APIRouter:
    """Routes under `/admin`."""
    router = APIRouter(prefix="/admin", tags=["administration"])

    @router.post(
        "/index/refresh",
        summary="Serve the index version that is now the current one on disk",
        responses=openapi.administration_problems(),
    )
    async def refresh(request: Request) -> IndexState:
        _authorise(request, settings.admin_key.get_secret_value())
        before = served.bundle.index.version
        bundle = await served.refresh()
        return IndexState(
            bundle_id=bundle.info.bundle_id,
            index_version=bundle.index.version,
            previous_version=before,
            items=len(bundle.index.catalogue) - len(bundle.index.removed),
        )

    return router


def _authorise(request: Request, key: str) -> None:
    if not key:
        raise NotFoundError("See /docs for the paths that exist.")
    given = request.headers.get("authorization", "")
    if not hmac.compare_digest(given.encode(), f"Bearer {key}".encode()):
        raise UnauthorizedError("The admin key is missing or wrong.", headers={"WWW-Authenticate": "Bearer"})
