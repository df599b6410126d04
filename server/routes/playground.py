"""The web page at `/`: static files that call the API like any other client.

The Content-Security-Policy lets the page load these files only and connect to this server only. It also forbids scripts
to write HTML, so no text of an answer can become markup.
"""

from __future__ import annotations

from pathlib import Path

from fastapi import APIRouter

from server.api.paths import PLAYGROUND
from server.routes.files import OWN_FILES, add_file

_FOLDER = Path(__file__).parents[1] / "static" / "playground"
_POLICY = OWN_FILES | {
    "require-trusted-types-for": "'script'",
    "trusted-types": "'none'",
}


def playground() -> APIRouter:
    """Return a router with a route for each file of the page."""
    router = APIRouter(include_in_schema=False)
    for path, name in PLAYGROUND.items():
        add_file(router, path, name, (_FOLDER / name).read_bytes(), _POLICY)
    return router
