"""The paths of the API, by what is done with them. Short paths are aliases of those under /v1."""

from __future__ import annotations

from index.history import Task

VERSION = "/v1"
KINDS = (*(task.value for task in Task), "batch")  # of ranking requests

_RANKING = {"/search": Task.SEARCH.value, "/recommend": Task.RECOMMENDATION.value, "/batch": "batch"}
RANKING = _RANKING | {VERSION + path: kind for path, kind in _RANKING.items()}
QUIET = ("/health/live", "/health/ready", "/metrics", "/info", "/docs", "/openapi.json")
ADMINISTRATION = ("/admin/index/refresh", "/admin/bundle/refresh")
NAMED = {*RANKING, *QUIET, *ADMINISTRATION}


def ranking_kind(method: str, path: str) -> str | None:
    """What a request asks for: one of `KINDS`, or None if it is no ranking request."""
    return RANKING.get(path) if method == "POST" else None
