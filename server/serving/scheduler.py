"""The scheduler: from single requests to batches, by a bounded queue in front of one engine.

Requests wait in order of arrival. The engine has up to `max_batch_size` of them in flight: an engine that takes
requests while it works gets the next one as soon as there is room, any other when its batch is done. Only an idle
engine waits `window` seconds for more requests. A request that expired or was cancelled leaves the queue at
once; if the engine has it already, it is dropped between two steps.

A request that would not be answered in time is refused at once instead of waiting for nothing: by the length of the
queue, and by a forecast from the engine's recent throughput. The whole queue is for bursts: under sustained overload a
long one would only make everybody wait, so that for a while after a refusal only half a batch may wait.

The event loop stays free while the engine computes, because a thread waits for it.
"""

from __future__ import annotations

import asyncio
import logging
import math
import time
from collections.abc import Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from dataclasses import replace
from typing import Any

from server.api.errors import (
    DeadlineError,
    DeadlineUnreachableError,
    EngineFailedError,
    EngineUnavailableError,
    NotReadyError,
    QueueFullError,
)
from server.engine.contract import EngineLostError, HostedEngine, Outcome, Ranking, RankRequest
from server.serving.throughput import Throughput
from server.telemetry.metrics import Metrics

logger = logging.getLogger("server.serving.scheduler")

_LONGEST_RETRY = 60  # seconds
_STOPPING = "The server is starting or shutting down."
_LOST = "The model's process was lost and is being restarted; the request may be sent again."
_TOO_LATE = "The answer was not ready in time; ask for less, or try again later."
PATIENCE = 5.0  # seconds without an engine after which requests are refused instead of queued
OVERLOADED = 5.0  # seconds that the queue stays short after it was full

# A caller waits for it: the ranking, and the time at which it came (`monotonic`). Requests are known by it.
Pending = asyncio.Future[tuple[Ranking, float]]


class Scheduler:
    """Owns the thread that uses the engine. `start` and `stop` it on the event loop that submits.

    max_batch_size: requests in flight at most.
    window: seconds that an idle engine waits for more requests.
    queue_limit: requests that may wait in a burst, beyond those that the engine has room for.
    """

    def __init__(
        self,
        engine: HostedEngine,
        metrics: Metrics,
        *,
        max_batch_size: int,
        window: float,
        queue_limit: int,
    ) -> None:
        self._engine = engine
        self._levels = engine.everything.trie.levels
        self._metrics = metrics
        self._max_batch_size = max_batch_size
        self._window = window
        self._queue_limit = queue_limit
        self._waiting: dict[Pending, RankRequest] = {}  # in order of arrival; any may leave
        self._in_flight: dict[Pending, RankRequest] = {}
        self._changed = asyncio.Event()  # set when requests come or leave, or `_accepting` changes
        self._worker: asyncio.Task[None] | None = None
        self._thread: ThreadPoolExecutor | None = None
        self._accepting = False
        self._full_at = -math.inf  # time of the latest refusal for a full queue, on the clock of `monotonic`
        self._throughput = Throughput()

    @property
    def depth(self) -> int:
        """Number of requests that wait."""
        return len(self._waiting)

    @property
    def queue_limit(self) -> int:
        """Number of requests that may wait now in front of a new one; small while the server is overloaded."""
        if time.monotonic() < self._full_at + OVERLOADED:
            return min(self._queue_limit, max(1, self._max_batch_size // 2))
        return self._queue_limit

    @property
    def running(self) -> bool:
        """Whether the engine would rank now."""
        return self._engine.running

    async def start(self, warm_up: Sequence[RankRequest] = ()) -> None:
        """Start the engine, which ranks `warm_up`, then accept requests. Raises what the engine raises."""
        self._thread = ThreadPoolExecutor(1, "engine")
        self._loop = asyncio.get_running_loop()
        await self._loop.run_in_executor(self._thread, self._engine.start, warm_up)
        self._accepting = True
        self._worker = asyncio.create_task(self._work(), name="scheduler")

    async def stop(self, patience: float) -> None:
        """Accept no more requests, finish those that wait within `patience` seconds, refuse the rest."""
        self._accepting = False
        self._changed.set()
        if self._worker is not None:
            await asyncio.wait([self._worker], timeout=patience)
            self._worker.cancel()
            with suppress(asyncio.CancelledError):
                await self._worker
        for pending in [*self._waiting, *self._in_flight]:
            _fail(pending, NotReadyError(_STOPPING))
        await asyncio.to_thread(self._engine.close)
        if self._thread is not None:
            self._thread.shutdown(wait=False)

    def admit(self) -> None:
        """Raise the error with which any request would be refused now."""
        if not self._accepting:
            raise NotReadyError(_STOPPING)
        if len(self._waiting) >= self._room + self.queue_limit:
            self._full_at = time.monotonic()
            raise QueueFullError(self._retry_after())

    async def rank(self, request: RankRequest, timeout: float, *, admitted: bool = False) -> Ranking:
        """Rank one request; stage `queue` of the answer's seconds holds the time outside the engine's steps.

        timeout: seconds until the answer is of no use.
        admitted: whether the request is part of one that was admitted already.
        Raises at once what `admit` raises, `DeadlineUnreachableError`, and `EngineUnavailableError` if the engine
        has been away for long; `DeadlineError` when the time is over; `EngineFailedError` or
        `EngineUnavailableError` if the engine failed on it or was lost with it.
        """
        if self._engine.down_seconds > PATIENCE:
            raise EngineUnavailableError(_LOST)
        if self._worker is None or self._worker.done():
            raise NotReadyError(_STOPPING)
        if not admitted:
            self.admit()
            ahead = self._forecast()
            if ahead and ahead + self._throughput.seconds(self._cost(request)) > timeout:
                raise DeadlineUnreachableError(self._retry_after())
        arrived = time.monotonic()
        pending: Pending = asyncio.get_running_loop().create_future()
        deadline = min(request.deadline, arrived + timeout)
        self._waiting[pending] = replace(request, deadline=deadline, cancelled=pending.done)
        self._changed.set()
        try:
            async with asyncio.timeout(timeout):
                ranking, came = await pending
        except TimeoutError:
            raise DeadlineError(_TOO_LATE) from None
        finally:
            self._waiting.pop(pending, None)  # if it leaves before its turn
        if ranking.expired:  # the engine dropped it: it knew the deadline, too
            raise DeadlineError(_TOO_LATE)
        waited = came - arrived - sum(ranking.seconds.values())
        return replace(ranking, seconds={"queue": max(0.0, waited)} | ranking.seconds)

    def _cost(self, *requests: RankRequest) -> int:
        """Positions that the engine computes for requests."""
        return sum(each.positions(self._levels) for each in requests)

    def _forecast(self) -> float:
        """Seconds until the engine would have done all requests in flight and all that wait."""
        waiting = self._throughput.seconds(self._cost(*self._waiting.values()))
        return self._throughput.ahead(time.monotonic()) + waiting

    def _retry_after(self) -> int:
        return min(max(1, math.ceil(self._forecast())), _LONGEST_RETRY)

    async def _work(self) -> None:
        """Hand over requests as far as there is room, until stopped and nothing is left."""
        while self._accepting or self._waiting or self._in_flight:
            if not self._waiting or not self._room:
                idle = not self._in_flight
                self._changed.clear()
                await self._changed.wait()
                if idle:
                    await self._wait_for_company()
                continue
            await self._engine_running()
            batch = self._take()
            if batch:
                await self._hand_over(batch)

    @property
    def _room(self) -> int:
        """Number of requests that the engine may take in addition to those in flight."""
        return self._max_batch_size - len(self._in_flight)

    async def _engine_running(self) -> None:
        """Wait until a lost engine is back, or no request waits for it any more."""
        while not self.running and self._waiting:
            await asyncio.sleep(0.01)

    async def _wait_for_company(self) -> None:
        """Wait until a full batch has arrived, but no longer than the window."""
        with suppress(TimeoutError):
            async with asyncio.timeout(self._window):
                while self._accepting and len(self._waiting) < self._max_batch_size:
                    self._changed.clear()
                    await self._changed.wait()

    def _take(self) -> dict[Pending, RankRequest]:
        """Remove the next requests from the queue, as many as there is room for, without expired ones."""
        batch: dict[Pending, RankRequest] = {}
        for pending, request in list(self._waiting.items()):
            if len(batch) == self._room:
                break
            del self._waiting[pending]
            if not pending.done():  # its caller disconnected, or its time is over
                batch[pending] = request
        return batch

    async def _hand_over(self, batch: dict[Pending, RankRequest]) -> None:
        """Submit requests on the engine's thread, which an engine may keep until they are done."""
        self._in_flight.update(batch)
        self._throughput.taken(self._cost(*batch.values()), time.monotonic())
        self._metrics.batch_size.observe(len(self._in_flight))
        try:
            await self._loop.run_in_executor(self._thread, self._engine.submit, {**batch}, self._on_done)
        except Exception as error:  # whatever it is, only these fail
            self._settle(dict.fromkeys(batch, error))

    def _on_done(self, outcomes: Mapping[Any, Outcome]) -> None:
        """Pass on outcomes to the event loop. Called on a thread of the engine's."""
        with suppress(RuntimeError):  # the loop is closed: nobody waits
            self._loop.call_soon_threadsafe(self._settle, outcomes)

    def _settle(self, outcomes: Mapping[Pending, Outcome]) -> None:
        """Answer requests that the engine finished at the same time."""
        now = time.monotonic()
        rankings: dict[Pending, Ranking] = {}
        errors: dict[Pending, Exception] = {}
        # An engine that raised in `submit` may report the same requests again.
        requests = {each: self._in_flight.pop(each) for each in outcomes if each in self._in_flight}
        for pending in requests:
            outcome = outcomes[pending]
            if isinstance(outcome, Exception):
                errors[pending] = outcome
            else:
                rankings[pending] = outcome
        self._changed.set()  # the engine gets more first, and the answers are made while it works
        if rankings:
            whole = not any(ranking.expired for ranking in rankings.values())
            self._throughput.answered(self._cost(*(requests[each] for each in rankings)), now, whole)
        for pending, ranking in rankings.items():
            if not pending.done():
                pending.set_result((ranking, now))
        if errors:
            self._throughput.failed(self._cost(*(requests[each] for each in errors)), now)
            self._fail_all(errors)

    def _fail_all(self, errors: Mapping[Pending, Exception]) -> None:
        """Fail the requests of one batch, or of one step."""
        self._metrics.engine_failures.inc()
        error = next(iter(errors.values()))
        lost = isinstance(error, EngineLostError)
        # The engine sees token ids only: its message holds no user text.
        logger.error(
            "a batch was lost" if lost else "the engine failed on a batch",
            extra={"batch": len(errors), "error": type(error).__name__, "reason": str(error)[:500]},
            exc_info=None if lost else error,
        )
        for pending in errors:
            _fail(
                pending,
                EngineUnavailableError(_LOST)
                if lost
                else EngineFailedError("The model failed on this request; it may be tried again."),
            )


def _fail(pending: Pending, error: Exception) -> None:
    if not pending.done():
        pending.set_exception(error)
