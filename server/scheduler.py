"""From single requests to batches: a bounded queue before one engine.

Requests wait in order of arrival. The engine takes up to `max_batch_size` of them at a time, and
waits `window` seconds for company only if it was idle. A request that was given up, by its deadline
or by its client, leaves the queue at once and is never ranked; the engine leaves it between two steps.

A request that would not be answered in time is refused at once instead of being kept waiting for nothing: by
the length of the queue, and by a forecast from how fast the latest batches were.

The event loop stays free while the engine computes, because a thread waits for it.
"""

from __future__ import annotations

import asyncio
import logging
import math
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from dataclasses import dataclass, replace

from server.engine.contract import Engine, EngineLostError, Ranking, RankRequest
from server.engine.process import EngineProcess
from server.errors import (
    DeadlineError,
    DeadlineUnreachableError,
    EngineFailedError,
    EngineUnavailableError,
    NotReadyError,
    QueueFullError,
)
from server.metrics import Metrics

logger = logging.getLogger("server.scheduler")

_LONGEST_RETRY = 60  # seconds
_STOPPING = "The server is starting or shutting down."
_LOST = "The model's process was lost and is being restarted; the request may be sent again."
PATIENCE = 5.0  # seconds without an engine after which requests are refused instead of queued


@dataclass(frozen=True, slots=True)
class Ranked:
    """A ranking, and the seconds that its request waited before its batch began."""

    ranking: Ranking
    waited: float


@dataclass(frozen=True, eq=False, slots=True)
class _Job:
    request: RankRequest
    cost: int  # positions that the engine computes
    arrived: float  # loop time
    deadline: float  # loop time
    answer: asyncio.Future[Ranked]


class _Pace:
    """How fast the engine is, from the latest batches: positions a second, old batches fading out."""

    _KEPT = 0.9  # weight of the past when a batch is added

    def __init__(self) -> None:
        self._cost = 0.0
        self._seconds = 0.0

    def add(self, cost: int, seconds: float, whole: bool = True) -> None:
        """whole: False where requests of the batch were given up. All of it would have taken longer, so that it
        counts only if it was slow already."""
        if not whole and seconds < self.seconds(cost):
            return
        self._cost = self._KEPT * self._cost + cost
        self._seconds = self._KEPT * self._seconds + seconds

    def seconds(self, cost: float) -> float:
        """Forecast for so many positions; 0 before the first batch."""
        return cost * self._seconds / self._cost if self._cost else 0.0


class Scheduler:
    """Owns the thread that uses the engine. `start` and `stop` it on the event loop that submits.

    queue_limit: requests that may wait; those being ranked do not count.
    window: seconds to wait for a batch to fill.
    """

    def __init__(
        self, engine: Engine, metrics: Metrics, *, max_batch_size: int, window: float, queue_limit: int
    ) -> None:
        self._engine = engine
        self._levels = engine.everything.trie.levels
        self._metrics = metrics
        self._max_batch_size = max_batch_size
        self._window = window
        self._queue_limit = queue_limit
        self._waiting: dict[_Job, None] = {}  # in order of arrival; a job can leave from the middle
        self._computing_cost = 0  # of the batch that the engine has now
        self._computing_since = 0.0  # loop time
        self._arrival = asyncio.Event()
        self._worker: asyncio.Task[None] | None = None
        self._thread: ThreadPoolExecutor | None = None
        self._accepting = False
        self._pace = _Pace()

    @property
    def depth(self) -> int:
        """How many requests are waiting."""
        return len(self._waiting)

    @property
    def running(self) -> bool:
        """Whether the engine is there."""
        return not isinstance(self._engine, EngineProcess) or self._engine.running

    async def start(self, warm_up: Sequence[RankRequest] = ()) -> None:
        """Rank `warm_up`, then accept requests. An `EngineProcess` is started. Raises what the engine raises."""
        self._thread = ThreadPoolExecutor(1, "engine")
        loop = asyncio.get_running_loop()
        if isinstance(self._engine, EngineProcess):
            await loop.run_in_executor(self._thread, self._engine.start, warm_up)
        elif warm_up:
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
        if isinstance(self._engine, EngineProcess):
            await asyncio.to_thread(self._engine.close)
        if self._thread is not None:
            self._thread.shutdown(wait=False)

    def admit(self) -> None:
        """Raise what a request submitted now would be refused with, whatever it asks for."""
        if not self._accepting:
            raise NotReadyError(_STOPPING)
        if len(self._waiting) >= self._queue_limit:
            raise QueueFullError(self._retry_after())

    async def rank(self, request: RankRequest, timeout: float, *, admitted: bool = False) -> Ranked:
        """Rank one request within `timeout` seconds. admitted: as a part of one that was let in already.

        Raises at once what `admit` raises, `DeadlineUnreachableError`, and `EngineUnavailableError` if the engine
        has been away for long; `DeadlineError` when the time is up; `EngineFailedError` or
        `EngineUnavailableError` if the engine failed on its batch or was lost with it.
        """
        cost = self._cost(request)
        if isinstance(self._engine, EngineProcess) and self._engine.down_seconds > PATIENCE:
            raise EngineUnavailableError(_LOST)
        if self._worker is None or self._worker.done():
            raise NotReadyError(_STOPPING)
        if not admitted:
            self.admit()
            ahead = self._forecast()
            if ahead and ahead + self._pace.seconds(cost) > timeout:
                raise DeadlineUnreachableError(self._retry_after())
        loop = asyncio.get_running_loop()
        now = loop.time()
        answer = loop.create_future()
        job = _Job(replace(request, gone=answer.done), cost, now, now + timeout, answer)
        self._waiting[job] = None
        self._arrival.set()
        try:
            async with asyncio.timeout_at(job.deadline):
                return await job.answer
        except TimeoutError:
            raise DeadlineError(
                f"No answer within {timeout:.3g} s; ask for less or try again later."
            ) from None
        finally:
            self._waiting.pop(job, None)  # given up before its turn

    def _cost(self, request: RankRequest) -> int:
        return len(request.prompt) + max(request.beam_width, request.limit) * (self._levels - 1)

    def _forecast(self) -> float:
        """Seconds until the engine would have done all that it has and all that waits."""
        computed = asyncio.get_running_loop().time() - self._computing_since
        now = max(0.0, self._pace.seconds(self._computing_cost) - computed)
        return now + self._pace.seconds(sum(job.cost for job in self._waiting))

    def _retry_after(self) -> int:
        return min(max(1, math.ceil(self._forecast())), _LONGEST_RETRY)

    async def _work(self) -> None:
        """Rank batch after batch until stopped and nothing waits."""
        while self._accepting or self._waiting:
            if not self._waiting:
                self._arrival.clear()
                await self._arrival.wait()
                await self._gather_company()
            await self._engine_running()
            batch = self._take()
            if batch:
                await self._rank(batch)

    async def _engine_running(self) -> None:
        """Wait until a lost engine is back, or nothing waits for it any more."""
        while not self.running and self._waiting:
            await asyncio.sleep(0.01)

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
        self._computing_since = began = loop.time()
        self._computing_cost = sum(job.cost for job in batch)
        self._metrics.batch_size.observe(len(batch))
        try:
            rankings = await self._on_thread([job.request for job in batch])
            answers = list(zip(batch, rankings, strict=True))
        except asyncio.CancelledError:  # stopped while the engine computes
            for job in batch:
                self._fail(job, NotReadyError(_STOPPING))
            raise
        except EngineLostError as error:
            self._metrics.engine_failures.inc()
            logger.error("a batch was lost", extra={"batch": len(batch), "reason": str(error)})
            for job in batch:
                self._fail(job, EngineUnavailableError(_LOST))
            return
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
        finally:
            self._computing_cost = 0
        whole = not any(ranking.expired for ranking in rankings)
        self._pace.add(sum(job.cost for job in batch), loop.time() - began, whole)
        for job, ranking in answers:
            if ranking.expired:  # the engine gave it up: it knew the deadline, too
                self._fail(job, _too_late(job.deadline - job.arrived))
            elif not job.answer.done():
                job.answer.set_result(Ranked(ranking, began - job.arrived))

    def _on_thread(self, requests: Sequence[RankRequest]) -> asyncio.Future[list[Ranking]]:
        return asyncio.get_running_loop().run_in_executor(self._thread, self._engine.rank, requests)

    @staticmethod
    def _fail(job: _Job, error: Exception) -> None:
        if not job.answer.done():
            job.answer.set_exception(error)


def _too_late(seconds: float) -> DeadlineError:
    return DeadlineError(f"No answer within {seconds:.3g} s; ask for less or try again later.")
