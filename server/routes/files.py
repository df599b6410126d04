"""Static files of the web pages: read once at the start, revalidated by browsers, under a Content-Security-Policy."""

from __future__ import annotations

import hashlib
from collections.abc import Mapping
from pathlib import PurePath

from fastapi import APIRouter, Request, Response

_MEDIA_TYPES = {
    ".html": "text/html; charset=utf-8",
    ".css": "text/css; charset=utf-8",
    ".js": "text/javascript; charset=utf-8",
    ".svg": "image/svg+xml",
}
# A policy: files and answers of this server, and nothing else.
OWN_FILES = {
    "default-src": "'none'",
    "script-src": "'self'",
    "style-src": "'self'",
    "img-src": "'self'",
    "connect-src": "'self'",
    "base-uri": "'none'",
    "form-action": "'none'",
    "frame-ancestors": "'none'",
}
_HEADERS = {
    "Cache-Control": "no-cache",  # browsers revalidate each time, so an upgrade shows at once
    "Referrer-Policy": "no-referrer",
    "X-Content-Type-Options": "nosniff",
}


def add_file(router: APIRouter, path: str, name: str, content: bytes, policy: Mapping[str, str]) -> None:
    """Answer GET and HEAD at `path` with a file.

    name: of the file; its ending decides the media type.
    policy: the Content-Security-Policy, by directive.
    """
    etag = f'"{hashlib.sha256(content).hexdigest()[:32]}"'
    directives = "; ".join(f"{directive} {value}" for directive, value in policy.items())
    headers = _HEADERS | {"Content-Security-Policy": directives, "ETag": etag}

    @router.get(path)
    @router.head(path)
    async def file(request: Request) -> Response:
        known = [
            tag.strip().removeprefix("W/") for tag in request.headers.get("if-none-match", "").split(",")
        ]
        if etag in known:
            return Response(status_code=304, headers=headers)
        return Response(content, headers=headers, media_type=_MEDIA_TYPES[PurePath(name).suffix])
