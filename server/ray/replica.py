"""One server of a fleet, in a process of Ray's: application and engine of `python -m server`, without a socket.

Ray starts it, asks after its health, sends it requests, and ends it; see `application`.
"""

from __future__ import annotations

from contextlib import AsyncExitStack
from dataclasses import replace
from pathlib import Path

from ray import serve

from server.engine.process import template
from server.launch import open_app, prepare
from server.ray.exchange import REPLICA, Answered, Sent, ask
from server.runtime import garbage
from server.settings import Settings


class Replica:
    """Serves a bundle. It is made when its engine is ready, so that Ray sends no request before.

    path: folder of a bundle, or a link to one, on every machine.
    """

    async def __init__(self, path: Path, settings: Settings) -> None:  # type: ignore[misc]  # Ray awaits it
        """Raise what `prepare` and `open_app` raise, or the engine: Ray then tries again, and gives up."""
        self._running = AsyncExitStack()
        self._id = serve.get_replica_context().replica_id.unique_id
        template.begin()
        spans = prepare(settings)
        if spans is not None:
            self._running.callback(spans.close)
        self._app = open_app(path, settings, spans)
        await self._running.enter_async_context(self._app.router.lifespan_context(self._app))
        garbage.settle()

    async def answer(self, sent: Sent) -> Answered:
        """Answer a request, errors included, as the server itself would."""
        answered = await ask(self._app, sent)
        return replace(answered, headers=[*answered.headers, (REPLICA, self._id.encode())])

    async def check_health(self) -> None:
        """Raise an error while the engine is away. Ray replaces a replica after three of them in a row."""
        status = self._app.state.readiness.status
        if status != "ready":
            raise RuntimeError(f"the server is {status}")

    async def __del__(self) -> None:
        """Finish what the engine has, and end it. Ray calls this when no request is left."""
        await self._running.aclose()
        template.end()
