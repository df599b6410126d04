"""Who may ask: keys in the `Authorization: Bearer` header, compared in constant time."""

from __future__ import annotations

import hmac
from collections.abc import Iterable

from fastapi.security import HTTPBearer
from starlette.datastructures import Headers

from server.api.errors import UnauthorizedError

BEARER = HTTPBearer(auto_error=False, description="One of GEMS_API_KEYS, if any are set.")  # checked earlier


def split(setting: str) -> list[str]:
    """The parts of a comma-separated setting."""
    return [part.strip() for part in setting.split(",") if part.strip()]


def bearer(headers: Headers) -> bytes:
    """The key that was sent, as its bytes came; empty for none."""
    scheme, _, key = headers.get("authorization", "").partition(" ")
    return key.strip().encode("latin-1") if scheme.lower() == "bearer" else b""


def authorise(sent: bytes, keys: Iterable[str]) -> None:
    """Raise `UnauthorizedError` unless one of the keys was sent. All are compared, so that the time tells nothing."""
    matches = [hmac.compare_digest(sent, key.encode()) for key in keys]  # `any` alone would stop at the first
    if not any(matches):
        raise UnauthorizedError("The key is missing or wrong.", headers={"WWW-Authenticate": "Bearer"})
