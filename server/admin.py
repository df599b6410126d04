"""The administration endpoints. They ask for the admin key; without one set, they answer 404."""

from __future__ import annotations

import hmac
from typing import Annotated

from fastapi import APIRouter, Depends
from fastapi.security import HTTPAuthorizationCredentials, HTTPBearer

from server import openapi
from server.errors import NotFoundError, UnauthorizedError
from server.schemas import IndexState
from server.served import Served
from server.settings import Settings

BEARER = HTTPBearer(auto_error=False, description="The admin key, GEMS_ADMIN_KEY.")


def administration(served: Served, settings: Settings) -> APIRouter:
    """Routes under `/admin`."""
    router = APIRouter(prefix="/admin", tags=["administration"])

    @router.post(
        "/index/refresh",
        summary="Serve the index version that is now the current one on disk",
        responses=openapi.administration_problems(),
    )
    async def refresh(given: Annotated[HTTPAuthorizationCredentials | None, Depends(BEARER)]) -> IndexState:
        _authorise(given, settings.admin_key.get_secret_value().strip())
        before, bundle = await served.refresh()
        return IndexState(
            bundle_id=bundle.info.bundle_id,
            index_version=bundle.index.version,
            previous_version=before.index.version,
            items=len(bundle.index.catalogue) - len(bundle.index.removed),
        )

    return router


def _authorise(given: HTTPAuthorizationCredentials | None, key: str) -> None:
    if not key:
        raise NotFoundError("See /docs for the paths that exist.")
    sent = given.credentials.encode("latin-1") if given is not None else b""  # header bytes, as they came
    if not hmac.compare_digest(sent, key.encode()):
        raise UnauthorizedError("The admin key is missing or wrong.", headers={"WWW-Authenticate": "Bearer"})
