"""The front of a fleet: reads a request, and has the replica answer that holds its person's prefix.

Ray's proxy hands over a request before its body has come, so it cannot know whose it is. The front reads the body and
names the person to Ray's router, which keeps a person on one replica. What concerns every replica goes to all of them.
"""

from __future__ import annotations

import asyncio
from contextlib import suppress

from fastapi import Request, Response
from prometheus_client import CONTENT_TYPE_LATEST
from ray.exceptions import RayError
from ray.serve.exceptions import BackPressureError, RayServeException
from ray.serve.handle import DeploymentHandle

from server.api.errors import (
    DeadlineError,
    EngineUnavailableError,
    NotReadyError,
    QueueFullError,
    ServerError,
    problem_response,
)
from server.api.paths import ADMINISTRATION
from server.ray.exchange import REPLICA, Answered, Sent
from server.ray.person import person_of
from server.ray.scrape import merged
from server.settings import Settings
from server.transport.body import read_body

HEALTH = ("/health/live", "/health/ready")
METRICS = "/metrics"
LOOK_SECONDS = 5.0  # for all replicas to tell their metrics
HEALTH_SECONDS = 1.5  # for all replicas to tell their health
ONE_SECONDS, TRIES = (
    0.5,
    2,
)  # for one replica to tell its health, if all do not; in all less than a probe waits
REFRESH_SECONDS = 660.0  # for all replicas to open a bundle; each gives up by itself before
GRACE_SECONDS = 1.0  # for a replica to say itself that the time of a request is over


class Front:
    """Receives every request of the fleet. replicas: the deployment of `Replica`."""

    def __init__(self, replicas: DeploymentHandle, settings: Settings) -> None:
        self._replicas = replicas
        self._settings = settings
        self._patience = settings.request_timeout_ms / 1000 + GRACE_SECONDS
        self._draining = False

    async def __call__(self, request: Request) -> Response:
        """Answer a request over HTTP, errors included."""
        try:
            body = await read_body(request, self._settings.max_body_bytes, self._settings.body_seconds)
            sent = Sent.of(request, body)
            if sent.path in HEALTH:
                answered = await self._health(sent)
            elif sent.path == METRICS:
                answered = await self._metrics(sent)
            elif sent.path in ADMINISTRATION:
                answered = await self._administration(sent)
            else:
                answered = await self._ranking(sent)
        except ServerError as error:
            return problem_response(error, request.headers.get("x-request-id", ""))
        return answered.response()

    async def drain(self) -> None:
        """Say from now on that no requests are wanted; those that come are answered all the same."""
        self._draining = True

    async def _ranking(self, sent: Sent) -> Answered:
        """Have one replica answer: that of the person while it has room, otherwise another."""
        person = person_of(sent)
        replicas = self._replicas.options(session_id=person) if person else self._replicas
        asked = replicas.answer.remote(sent)
        try:
            async with asyncio.timeout(self._patience):
                answered: Answered = await asked
                return answered
        except BackPressureError as error:
            raise QueueFullError(1) from error
        except TimeoutError as error:
            asked.cancel()
            raise DeadlineError("No server had room for the request in time.") from error
        except asyncio.CancelledError:
            asked.cancel()
            raise
        except (RayError, RayServeException) as error:
            raise EngineUnavailableError(
                "The server that had this request was lost; the request may be sent again."
            ) from error

    async def _health(self, sent: Sent) -> Answered:
        """Return the best health of all replicas: the fleet is ready as long as one is.

        A replica that hangs keeps all of them from being heard until Ray has replaced it: then any other one will do.
        """
        if self._draining and sent.path == HEALTH[1]:
            raise NotReadyError("The server is draining.")
        try:
            return min(await self._all(sent, HEALTH_SECONDS), key=lambda answered: answered.status)
        except NotReadyError:
            for _ in range(TRIES):
                asked = self._replicas.answer.remote(sent)
                with suppress(RayError, RayServeException, TimeoutError):
                    async with asyncio.timeout(ONE_SECONDS):
                        answered: Answered = await asked
                        return answered
                asked.cancel()
            raise

    async def _metrics(self, sent: Sent) -> Answered:
        """Return the metrics of all replicas that gave them."""
        answers = [each for each in await self._all(sent, LOOK_SECONDS) if each.status == 200]
        body = merged({dict(each.headers)[REPLICA].decode(): each.body for each in answers})
        headers = {"content-type": CONTENT_TYPE_LATEST, "content-length": str(len(body))}
        raw = [(name.encode(), value.encode()) for name, value in headers.items()]
        return Answered(200, raw, b"" if sent.method == "HEAD" else body)

    async def _administration(self, sent: Sent) -> Answered:
        """Have every replica do it; return the worst answer, so that 200 means all of them."""
        answers = await self._all(sent, REFRESH_SECONDS)
        return max(answers, key=lambda answered: answered.status)

    async def _all(self, sent: Sent, seconds: float) -> list[Answered]:
        """Ask all replicas. Return the answers of those that live; raise `NotReadyError` if none does in time."""
        try:
            found = await self._replicas.broadcast("answer", sent).results_async(
                timeout_s=seconds, return_exceptions=True
            )
        except (RayError, RayServeException, TimeoutError) as error:
            raise NotReadyError("No server is ready.") from error
        answers = [each for each in found if isinstance(each, Answered)]
        if not answers:
            raise NotReadyError("No server is ready.")
        return answers
