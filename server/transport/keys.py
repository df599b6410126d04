"""API keys: sent in the `Authorization: Bearer` header, compared in constant time."""

from __future__ import annotations

import hmac
from collections.abc import Iterable

from fastapi.security import HTTPBearer
from starlette.datastructures import Headers

from server.api.errors import UnauthorizedError

# This only describes the keys in the OpenAPI document; the middleware checks them.
BEARER = HTTPBearer(auto_error=False, description="One of GEMS_API_KEYS, if any are set.")


def bearer(headers: Headers) -> bytes:
    """Return the key that was sent, as raw bytes; empty if there is none."""
    scheme, _, key = headers.get("authorization", "").partition(" ")
    return key.strip().encode("latin-1") if scheme.lower() == "bearer" else b""


def authorise(sent: bytes, keys: Iterable[str]) -> None:
    """Raise `UnauthorizedError` unless the sent key is one of `keys`.

    All keys are compared, so that the time reveals nothing about them.
    """
    matches = [hmac.compare_digest(sent, key.encode()) for key in keys]  # `any` would stop at the first match
    if not any(matches):
        raise UnauthorizedError("The key is missing or wrong.", headers={"WWW-Authenticate": "Bearer"})
