"""The prefix under which a proxy serves this server, taken off before anything else reads the path."""

from __future__ import annotations

from starlette.responses import RedirectResponse
from starlette.types import ASGIApp, Receive, Scope, Send

# In place of a path with a control character. A pattern of a route may end before a line feed, which would be a way
# around the keys.
NOWHERE = "/404"


class RootPathMiddleware:
    """Give every request one path, whether the proxy strips its prefix or not.

    Key check, metrics, log, traces and routes all read `scope["path"]`; if one of them saw another path than the
    routes, a prefix would be a way around the keys. So the path is that of the server itself, and `root_path` is empty,
    also if the program that runs the application sets one.

    root_path: the prefix, such as `/gems`; empty: none. A request for just that is redirected to `/gems/`, below which
        the relative addresses of the web page lead to the right place.
    """

    def __init__(self, app: ASGIApp, root_path: str) -> None:
        self._app = app
        self._root_path = root_path

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] != "http":
            await self._app(scope, receive, send)
            return
        outer = scope.get("root_path", "")
        path = _below(self._root_path, _below(outer, _origin_form(scope["path"])))
        if not path.isprintable():
            path = NOWHERE
        if not path:
            query = scope["query_string"].decode("latin-1")
            target = f"{outer}{self._root_path}/" + (f"?{query}" if query else "")
            await RedirectResponse(target, 308)(scope, receive, send)
            return
        await self._app({**scope, "path": path, "root_path": ""}, receive, send)


def _origin_form(target: str) -> str:
    """Return the path of a request target, which may name a host before it (RFC 9112, section 3.2.2)."""
    scheme, separator, rest = target.partition("://")
    return f"/{rest.partition('/')[2]}" if separator and scheme.lower() in ("http", "https") else target


def _below(prefix: str, path: str) -> str:
    """Return the rest of a path that lies below a prefix, "" for the prefix itself; any other path as it is."""
    return path.removeprefix(prefix) if path == prefix or path.startswith(f"{prefix}/") else path
