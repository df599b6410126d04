"""From single requests to batches: a bounded queue before one engine thread.

Requests wait in order of arrival. The engine takes up to `max_batch_size` of them at a time, and
waits `window` seconds for company only if it was idle. A request that was given up, by its deadline
or by its client, leaves the queue at once and is never ranked.

The event loop stays free while the engine computes, because the engine has a thread of its own.
"""

from __future__ import annotations

import asyncio
import logging
import math
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from dataclasses import dataclass

from server.engine.contract import Engine, Ranking, RankRequest
from server.errors import DeadlineError, EngineFailedError, NotReadyError, QueueFullError
from server.metrics import Metrics

logger = logging.getLogger("server.scheduler")

_LONGEST_RETRY = 60  # seconds
_STOPPING = "The server is starting or shutting down."


@dataclass(frozen=True, slots=True)
class Ranked:
    """A ranking, and the seconds that its request waited before its batch began."""

    ranking: Ranking
    waited: float


@dataclass(frozen=True, eq=False, slots=True)
class _Job:
    request: RankRequest
    arrived: float  # loop time
    deadline: float  # loop time
    answer: asyncio.Future[Ranked]


class Scheduler:
    """Owns the engine's thread. `start` and `stop` it on the event loop that submits.

    queue_limit: requests that may wait; those being ranked do not count.
    window: seconds to wait for a batch to fill.
    """

    def __init__(
        self, engine: Engine, metrics: Metrics, *, max_batch_size: int, window: float, queue_limit: int
    ) -> None:
        self._engine = engine
        self._metrics = metrics
        self._max_batch_size = max_batch_size
        self._window = window
        self._queue_limit = queue_limit
        self._waiting: dict[_Job, None] = {}  # in order of arrival; a job can leave from the middle
        self._arrival = asyncio.Event()
        self._worker: asyncio.Task[None] | None = None
        self._thread: ThreadPoolExecutor | None = None
        self._accepting = False
        self._batch_seconds = 0.0  # of recent batches, smoothed

    @property
    def depth(self) -> int:
        """How many requests are waiting."""
        return len(self._waiting)

    async def start(self, warm_up: Sequence[RankRequest] = ()) -> None:
        """Rank `warm_up` on the engine's thread, then accept requests. Raises what the engine raises."""
        self._thread = ThreadPoolExecutor(1, "engine")
        if warm_up:
            await self._on_thread(warm_up)
        self._accepting = True
        self._worker = asyncio.create_task(self._work(), name="scheduler")

    async def stop(self, patience: float) -> None:
        """Accept nothing more, finish what waits within `patience` seconds, refuse the rest."""
        self._accepting = False
        self._arrival.set()
        if self._worker is not None:
            await asyncio.wait([self._worker], timeout=patience)
            self._worker.cancel()
            with suppress(asyncio.CancelledError):
                await self._worker
        for job in list(self._waiting):
            self._fail(job, NotReadyError(_STOPPING))
        if self._thread is not None:
            self._thread.shutdown(wait=False)

    def admit(self) -> None:
        """Raise `NotReadyError` or `QueueFullError` if a request submitted now would be refused."""
        if not self._accepting:
            raise NotReadyError(_STOPPING)
        if len(self._waiting) >= self._queue_limit:
            batches = math.ceil(self._queue_limit / self._max_batch_size)
            raise QueueFullError(min(max(1, math.ceil(batches * self._batch_seconds)), _LONGEST_RETRY))

    async def rank(self, request: RankRequest, timeout: float) -> Ranked:
        """Rank one request within `timeout` seconds.

        Raises `QueueFullError` and `NotReadyError` at once, `DeadlineError` when the time is up, and
        `EngineFailedError` if the engine failed on its batch.
        """
        self.admit()
        loop = asyncio.get_running_loop()
        now = loop.time()
        job = _Job(request, now, now + timeout, loop.create_future())
        self._waiting[job] = None
        self._arrival.set()
        try:
            async with asyncio.timeout_at(job.deadline):
                return await job.answer
        except TimeoutError:
            raise DeadlineError(f"No answer within {timeout:g} s; ask for less or try again later.") from None
        finally:
            self._waiting.pop(job, None)  # given up before its turn

    async def _work(self) -> None:
        """Rank batch after batch until stopped and nothing waits."""
        while self._accepting or self._waiting:
            if not self._waiting:
                self._arrival.clear()
                await self._arrival.wait()
                await self._gather_company()
            batch = self._take()
            if batch:
                await self._rank(batch)

    async def _gather_company(self) -> None:
        """Wait until a full batch has arrived, but no longer than the window."""
        with suppress(TimeoutError):
            async with asyncio.timeout(self._window):
                while self._accepting and len(self._waiting) < self._max_batch_size:
                    self._arrival.clear()
                    await self._arrival.wait()

    def _take(self) -> list[_Job]:
        """The next batch, without requests whose time is up."""
        now = asyncio.get_running_loop().time()
        batch: list[_Job] = []
        for job in list(self._waiting):
            if len(batch) == self._max_batch_size:
                break
            del self._waiting[job]
            if now < job.deadline and not job.answer.done():
                batch.append(job)
        return batch

    async def _rank(self, batch: list[_Job]) -> None:
        loop = asyncio.get_running_loop()
        began = loop.time()
        self._metrics.batch_size.observe(len(batch))
        try:
            rankings = await self._on_thread([job.request for job in batch])
            answers = list(zip(batch, rankings, strict=True))
        except asyncio.CancelledError:  # stopped while the engine computes
            for job in batch:
                self._fail(job, NotReadyError(_STOPPING))
            raise
        except Exception as error:  # whatever it is, only this batch fails
            self._metrics.engine_failures.inc()
            # The engine sees token ids only: its message holds no user text.
            logger.error(
                "the engine failed on a batch",
                extra={"batch": len(batch), "error": type(error).__name__, "reason": str(error)[:500]},
                exc_info=error,
            )
            for job in batch:
                self._fail(job, EngineFailedError("The model failed on this request; it may be tried again."))
            return
        self._batch_seconds = 0.7 * self._batch_seconds + 0.3 * (loop.time() - began)
        for job, ranking in answers:
            if not job.answer.done():
                job.answer.set_result(Ranked(ranking, began - job.arrived))

    def _on_thread(self, requests: Sequence[RankRequest]) -> asyncio.Future[list[Ranking]]:
        return asyncio.get_running_loop().run_in_executor(self._thread, self._engine.rank, requests)

    @staticmethod
    def _fail(job: _Job, error: Exception) -> None:
        if not job.answer.done():
            job.answer.set_exception(error)
