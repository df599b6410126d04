"""The paths of the server, grouped by use. Each path without /v1 is an alias of the same path under /v1."""

from __future__ import annotations

from index.sequence.events import Task

VERSION = "/v1"
KINDS = (*(task.value for task in Task), "batch")  # the kinds of ranking requests

_RANKING = {"/search": Task.SEARCH.value, "/recommend": Task.RECOMMENDATION.value, "/batch": "batch"}
RANKING = _RANKING | {VERSION + path: kind for path, kind in _RANKING.items()}
LOOKUP = "/items"
EVENTS = "/events"
USERS = "/users/"  # and the id of a person
DOCS = {"/docs": "index.html", "/docs/start.js": "start.js"}  # path → file in `server/static/docs`
SWAGGER_UI = {f"/docs/{name}": name for name in ("swagger-ui.css", "swagger-ui-bundle.js")}
PLAYGROUND = {"/": "index.html"} | {  # path → file in `server/static/playground`
    f"/playground/{name}": name
    for name in (
        *("style.css", "icon.svg"),
        *("app.js", "api.js", "card.js", "combobox.js", "dom.js", "results.js"),
    )
}
QUIET = (
    *("/health/live", "/health/ready", "/metrics", "/info", "/openapi.json"),
    *(*DOCS, *SWAGGER_UI, *PLAYGROUND),
)
ADMINISTRATION = ("/admin/index/refresh", "/admin/bundle/refresh")
_LOOKUPS = (LOOKUP, VERSION + LOOKUP)
_EVENTS = (EVENTS, VERSION + EVENTS)
_USERS = (USERS, VERSION + USERS)
NAMED = {*RANKING, *_LOOKUPS, *_EVENTS, *QUIET, *ADMINISTRATION}


def ranking_kind(method: str, path: str) -> str | None:
    """Return the kind of a ranking request, one of `KINDS`; None for any other request."""
    return RANKING.get(path) if method == "POST" else None


def asks_for_a_key(method: str, path: str) -> bool:
    """Whether a request must name an API key, on a server that has API keys."""
    if path in _EVENTS:
        return method == "POST"
    if path.startswith(_USERS):
        return method in ("GET", "HEAD", "DELETE")
    return ranking_kind(method, path) is not None or (method in ("GET", "HEAD") and path in _LOOKUPS)


def logged(path: str) -> str:
    """Return a path as the log names it: the client chooses it, so only known ones are, and never an id."""
    for users in _USERS:
        if path.startswith(users):
            return f"{users}{{user_id}}"
    return path if path in NAMED else "other"
