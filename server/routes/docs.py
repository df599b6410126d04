"""The page at `/docs`: Swagger UI on this server's OpenAPI document, without any other host.

Swagger UI comes with the package `fastapi-offline`, of which only the two files are used.
"""

from __future__ import annotations

from importlib import resources
from pathlib import Path

from fastapi import APIRouter

from server.api.paths import DOCS, SWAGGER_UI
from server.routes.files import OWN_FILES, add_file

_FOLDER = Path(__file__).parents[1] / "static" / "docs"
_POLICY = OWN_FILES | {"img-src": "'self' data:"}  # icons within the style sheet


def docs() -> APIRouter:
    """Return a router with a route for each file of the page."""
    router = APIRouter(include_in_schema=False)
    for path, name in DOCS.items():
        add_file(router, path, name, (_FOLDER / name).read_bytes(), _POLICY)
    swagger_ui = resources.files("fastapi_offline") / "static"
    for path, name in SWAGGER_UI.items():
        add_file(router, path, name, (swagger_ui / name).read_bytes(), _POLICY)
    return router
