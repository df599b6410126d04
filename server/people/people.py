"""The store of people as the server uses it: time limits, metrics, and caches that forget, too."""

from __future__ import annotations

import asyncio
import logging
import time
from collections.abc import Awaitable, Callable, Iterator, Sequence
from contextlib import contextmanager

from server.api.errors import QueueFullError, StoreUnavailableError
from server.people.interaction import Appended, Interaction
from server.people.store import Store, StoreError, StoreFullError
from server.telemetry.metrics import EVENT_OUTCOMES, Metrics

logger = logging.getLogger("server.people.people")

READ_SECONDS = 0.5  # for a history, before a request is answered without it
FAILURES = 3  # in a row, after which histories are not even asked for
PAUSE_SECONDS = 1.0  # until one is asked for again


class People:
    """A store, seen from the service and the routes.

    patience: seconds that a write, or a read by a route, may take; no request is older either.
    forget_caches: drops everything else that the server holds of earlier histories.
    """

    def __init__(
        self, store: Store, metrics: Metrics, patience: float, forget_caches: Callable[[], Awaitable[None]]
    ) -> None:
        self._store = store
        self._metrics = metrics
        self._patience = patience
        self._forget_caches = forget_caches
        self._failures = 0  # of reading, in a row
        self._down_until = 0.0  # monotonic
        self._later: set[asyncio.Task[None]] = set()

    def start(self) -> None:
        """Listen for people who are forgotten by other servers; call it on the event loop."""
        loop = asyncio.get_running_loop()

        def forgotten() -> None:
            loop.call_soon_threadsafe(self._forget_soon)

        self._store.on_forgotten = forgotten

    async def stop(self) -> None:
        """Write what waits, and close the store."""
        for task in self._later:
            task.cancel()
        await asyncio.to_thread(self._store.close)

    async def history(self, user_id: str, seconds: float) -> list[Interaction] | None:
        """Return what is kept of a person, oldest first; None if the store is down.

        seconds: until the answer is useless. The store gets half of them, and `READ_SECONDS` at most.
        """
        if time.monotonic() < self._down_until:
            self._metrics.store_failures.labels("read").inc()
            return None
        try:
            with self._measured("read"):
                async with asyncio.timeout(min(READ_SECONDS, seconds / 2)):
                    found = await self._store.history(user_id)
        except (StoreError, TimeoutError):
            self._failures += 1
            if self._failures >= FAILURES:
                self._down_until = time.monotonic() + PAUSE_SECONDS
            return None
        self._failures = 0
        return found

    async def everything(self, user_id: str) -> list[Interaction]:
        """Return what is kept of a person, oldest first. Raises `StoreUnavailableError`."""
        with _answered("Try again."), self._measured("read"):
            async with asyncio.timeout(self._patience):
                return await self._store.history(user_id)

    async def remember(self, events: Sequence[Interaction]) -> Appended:
        """Store events. Raises `StoreUnavailableError`, and `QueueFullError` if too many wait."""
        with (
            _answered("Send the events again; those that are stored already are not stored twice."),
            self._measured("write"),
        ):
            async with asyncio.timeout(self._patience):
                done = await self._store.append(events)
        for outcome in EVENT_OUTCOMES:
            self._metrics.events.labels(outcome).inc(getattr(done, outcome))
        return done

    async def forget(self, user_id: str) -> int:
        """Remove a person from the store and from all caches. Return how many events that was.

        Requests that had read the history before may fill the prefix cache again. They have ended after `patience`
        seconds, and it is emptied once more. Raises `StoreUnavailableError`.
        """
        with _answered("Send the request again until it is answered with 200."), self._measured("forget"):
            async with asyncio.timeout(2 * self._patience):
                events = await self._store.forget(user_id)
        await self._forget_caches()
        self._forget_again()
        return events

    def _forget_soon(self) -> None:
        self._in_background(self._forget_caches())
        self._forget_again()

    def _forget_again(self) -> None:
        async def wait() -> None:
            await asyncio.sleep(self._patience)
            await self._forget_caches()

        self._in_background(wait())

    def _in_background(self, work: Awaitable[None]) -> None:
        task = asyncio.ensure_future(work)
        self._later.add(task)
        task.add_done_callback(self._later.discard)

    @contextmanager
    def _measured(self, operation: str) -> Iterator[None]:
        began = time.perf_counter()
        try:
            yield
        except (StoreError, TimeoutError):
            self._metrics.store_failures.labels(operation).inc()
            raise
        self._metrics.store_seconds.labels(operation).observe(time.perf_counter() - began)


@contextmanager
def _answered(advice: str) -> Iterator[None]:
    """Answer failures of the store as errors of the request."""
    try:
        yield
    except StoreFullError as error:
        raise QueueFullError(1) from error
    except (StoreError, TimeoutError) as error:
        raise StoreUnavailableError(f"The store of people did not do it. {advice}") from error
