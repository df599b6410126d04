"""The web page at `/`: static files, read once at the start, that call the API like any other client.

The Content-Security-Policy lets the page load these files only and connect to this server only. It also forbids scripts
to write HTML, so no text of an answer can become markup.
"""

from __future__ import annotations

import hashlib
from pathlib import Path

from fastapi import APIRouter, Request, Response

from server.api.paths import PLAYGROUND

_FOLDER = Path(__file__).parents[1] / "static"
_MEDIA_TYPES = {
    ".html": "text/html; charset=utf-8",
    ".css": "text/css; charset=utf-8",
    ".js": "text/javascript; charset=utf-8",
    ".svg": "image/svg+xml",
}
_POLICY = {
    "default-src": "'none'",
    "script-src": "'self'",
    "style-src": "'self'",
    "img-src": "'self'",
    "connect-src": "'self'",
    "base-uri": "'none'",
    "form-action": "'none'",
    "frame-ancestors": "'none'",
    "require-trusted-types-for": "'script'",
    "trusted-types": "'none'",
}
_HEADERS = {
    "Cache-Control": "no-cache",  # browsers revalidate each time, so an upgrade shows at once
    "Content-Security-Policy": "; ".join(f"{name} {value}" for name, value in _POLICY.items()),
    "Referrer-Policy": "no-referrer",
    "X-Content-Type-Options": "nosniff",
}


def playground() -> APIRouter:
    """Return a router with a route for each file of the page."""
    router = APIRouter(include_in_schema=False)
    for path, name in PLAYGROUND.items():
        _add(router, path, _FOLDER / name)
    return router


def _add(router: APIRouter, path: str, file: Path) -> None:
    content = file.read_bytes()
    etag = f'"{hashlib.sha256(content).hexdigest()[:32]}"'
    headers = _HEADERS | {"ETag": etag}

    @router.get(path)
    @router.head(path)
    async def page(request: Request) -> Response:
        known = [
            tag.strip().removeprefix("W/") for tag in request.headers.get("if-none-match", "").split(",")
        ]
        if etag in known:
            return Response(status_code=304, headers=headers)
        return Response(content, headers=headers, media_type=_MEDIA_TYPES[file.suffix])
