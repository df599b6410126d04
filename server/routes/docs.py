"""The page at `/docs`: Swagger UI on this server's OpenAPI document, without any other host.

Swagger UI comes with the package `fastapi-offline`, of which only the two files are used.
"""

from __future__ import annotations

from importlib import resources
from pathlib import Path

from fastapi import APIRouter

from server.api.paths import DOCS, SWAGGER_UI
from server.routes.files import add_file

_FOLDER = Path(__file__).parents[1] / "static" / "docs"
_POLICY = {
    "default-src": "'none'",
    "script-src": "'self'",
    "style-src": "'self'",
    "img-src": "'self' data:",  # icons within the style sheet
    "connect-src": "'self'",
    "base-uri": "'none'",
    "form-action": "'none'",
    "frame-ancestors": "'none'",
}


def docs() -> APIRouter:
    """Return a router with a route for each file of the page."""
    router = APIRouter(include_in_schema=False)
    for path, name in DOCS.items():
        add_file(router, path, name, (_FOLDER / name).read_bytes(), _POLICY)
    swagger_ui = resources.files("fastapi_offline") / "static"
    for path, name in SWAGGER_UI.items():
        add_file(router, path, name, (swagger_ui / name).read_bytes(), _POLICY)
    return router
