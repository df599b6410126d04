"""From single requests to batches: a bounded queue before one engine.

Requests wait in order of arrival. The engine has up to `max_batch_size` of them in hand: a `ContinuousEngine` gets the
next as soon as there is room, any other when its batch is done. Only an idle engine waits `window` seconds for
company. A request that was given up, by its deadline or by its client, leaves the queue at once and is never
ranked; the engine leaves it between two steps.

A request that would not be answered in time is refused at once instead of being kept waiting for nothing: by
the length of the queue, and by a forecast from how fast the engine was of late (`pace`). The whole queue is for bursts:
while more comes than can be answered, a long one would only make everybody wait, so that for a while after a refusal
half a batch is all that may wait.

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
from dataclasses import dataclass, replace

from server.api.errors import (
    DeadlineError,
    DeadlineUnreachableError,
    EngineFailedError,
    EngineUnavailableError,
    NotReadyError,
    QueueFullError,
)
from server.engine.contract import ContinuousEngine, Engine, EngineLostError, Outcome, Ranking, RankRequest
from server.engine.process.engine_process import EngineProcess
from server.serving.throughput import Pace
from server.telemetry.metrics import Metrics

logger = logging.getLogger("server.serving.scheduler")

_LONGEST_RETRY = 60  # seconds
_STOPPING = "The server is starting or shutting down."
_LOST = "The model's process was lost and is being restarted; the request may be sent again."
PATIENCE = 5.0  # seconds without an engine after which requests are refused instead of queued
OVERLOADED = 5.0  # seconds that the queue stays short after it was full


@dataclass(frozen=True, slots=True)
class Ranked:
    """A ranking, and the seconds that its request waited: all but those of the steps that it took part in."""

    ranking: Ranking
    waited: float


@dataclass(frozen=True, eq=False, slots=True)
class _Job:
    request: RankRequest
    cost: int  # positions that the engine computes
    arrived: float  # loop time
    deadline: float  # loop time
    answer: asyncio.Future[Ranked]


class Scheduler:
    """Owns the thread that uses the engine. `start` and `stop` it on the event loop that submits.

    max_batch_size: requests that the engine has in hand at most.
    queue_limit: requests that may wait in a burst, beyond those that the engine has room for.
    window: seconds that an idle engine waits for company.
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
        self._in_hand: set[_Job] = set()  # of the engine
        self._changed = asyncio.Event()  # of what waits, of what is in hand, or of `_accepting`
        self._worker: asyncio.Task[None] | None = None
        self._thread: ThreadPoolExecutor | None = None
        self._accepting = False
        self._full_at = -math.inf  # on the clock of `monotonic`: the latest refusal for want of room
        self._pace = Pace()

    @property
    def depth(self) -> int:
        """How many requests are waiting."""
        return len(self._waiting)

    @property
    def queue_limit(self) -> int:
        """How many requests may wait now for one that has to be answered first: few while there is too much to do."""
        if time.monotonic() < self._full_at + OVERLOADED:
            return min(self._queue_limit, max(1, self._max_batch_size // 2))
        return self._queue_limit

    @property
    def running(self) -> bool:
        """Whether the engine is there."""
        return not isinstance(self._engine, EngineProcess) or self._engine.running

    async def start(self, warm_up: Sequence[RankRequest] = ()) -> None:
        """Rank `warm_up`, then accept requests. An `EngineProcess` is started. Raises what the engine raises."""
        self._thread = ThreadPoolExecutor(1, "engine")
        self._loop = loop = asyncio.get_running_loop()
        if isinstance(self._engine, EngineProcess):
            await loop.run_in_executor(self._thread, self._engine.start, warm_up)
        elif warm_up:
            await loop.run_in_executor(self._thread, self._engine.rank, warm_up)
        self._accepting = True
        self._worker = asyncio.create_task(self._work(), name="scheduler")

    async def stop(self, patience: float) -> None:
        """Accept nothing more, finish what waits within `patience` seconds, refuse the rest."""
        self._accepting = False
        self._changed.set()
        if self._worker is not None:
            await asyncio.wait([self._worker], timeout=patience)
            self._worker.cancel()
            with suppress(asyncio.CancelledError):
                await self._worker
        for job in [*self._waiting, *self._in_hand]:
            _fail(job, NotReadyError(_STOPPING))
        if isinstance(self._engine, EngineProcess):
            await asyncio.to_thread(self._engine.close)
        if self._thread is not None:
            self._thread.shutdown(wait=False)

    def admit(self) -> None:
        """Raise what a request submitted now would be refused with, whatever it asks for."""
        if not self._accepting:
            raise NotReadyError(_STOPPING)
        if len(self._waiting) >= self._room + self.queue_limit:
            self._full_at = time.monotonic()
            raise QueueFullError(self._retry_after())

    async def rank(self, request: RankRequest, timeout: float, *, admitted: bool = False) -> Ranked:
        """Rank one request within `timeout` seconds. admitted: as a part of one that was let in already.

        Raises at once what `admit` raises, `DeadlineUnreachableError`, and `EngineUnavailableError` if the engine
        has been away for long; `DeadlineError` when the time is up; `EngineFailedError` or
        `EngineUnavailableError` if the engine failed on it or was lost with it.
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
        self._changed.set()
        try:
            async with asyncio.timeout_at(job.deadline):
                return await job.answer
        except TimeoutError:
            raise _too_late(timeout) from None
        finally:
            self._waiting.pop(job, None)  # given up before its turn

    def _cost(self, request: RankRequest) -> int:
        return len(request.prompt) + max(request.beam_width, request.limit) * (self._levels - 1)

    def _forecast(self) -> float:
        """Seconds until the engine would have done all that it has and all that waits."""
        now = asyncio.get_running_loop().time()
        return self._pace.ahead(now) + self._pace.seconds(sum(job.cost for job in self._waiting))

    def _retry_after(self) -> int:
        return min(max(1, math.ceil(self._forecast())), _LONGEST_RETRY)

    async def _work(self) -> None:
        """Hand over what waits, as far as there is room, until stopped and nothing is left."""
        while self._accepting or self._waiting or self._in_hand:
            if not self._waiting or not self._room:
                idle = not self._in_hand
                self._changed.clear()
                await self._changed.wait()
                if idle:
                    await self._gather_company()
                continue
            await self._engine_running()
            batch = self._take()
            if batch:
                await self._hand_over(batch)

    @property
    def _room(self) -> int:
        """How many requests more the engine may have in hand."""
        return self._max_batch_size - len(self._in_hand)

    async def _engine_running(self) -> None:
        """Wait until a lost engine is back, or nothing waits for it any more."""
        while not self.running and self._waiting:
            await asyncio.sleep(0.01)

    async def _gather_company(self) -> None:
        """Wait until a full batch has arrived, but no longer than the window."""
        with suppress(TimeoutError):
            async with asyncio.timeout(self._window):
                while self._accepting and len(self._waiting) < self._max_batch_size:
                    self._changed.clear()
                    await self._changed.wait()

    def _take(self) -> list[_Job]:
        """The next requests, as many as there is room for, without those whose time is up."""
        now = asyncio.get_running_loop().time()
        batch: list[_Job] = []
        for job in list(self._waiting):
            if len(batch) == self._room:
                break
            del self._waiting[job]
            if now < job.deadline and not job.answer.done():
                batch.append(job)
        return batch

    async def _hand_over(self, batch: list[_Job]) -> None:
        """To a continuous engine, without waiting for answers; to another, until it is done."""
        self._in_hand.update(batch)
        self._pace.taken(sum(job.cost for job in batch), self._loop.time())
        self._metrics.batch_size.observe(len(self._in_hand))
        outcomes: Mapping[_Job, Outcome] = {}
        try:
            if isinstance(self._engine, ContinuousEngine):
                asked = {job: job.request for job in batch}
                await self._loop.run_in_executor(self._thread, self._engine.submit, asked, self._tell)
            else:
                requests = [job.request for job in batch]
                rankings = await self._loop.run_in_executor(self._thread, self._engine.rank, requests)
                outcomes = dict(zip(batch, rankings, strict=True))
        except Exception as error:  # whatever it is, only these fail
            outcomes = dict.fromkeys(batch, error)
        self._settle(outcomes)

    def _tell(self, outcomes: Mapping[_Job, Outcome]) -> None:
        """Called on a thread of the engine's."""
        with suppress(RuntimeError):  # the loop is closed: nobody is there to be told
            self._loop.call_soon_threadsafe(self._settle, outcomes)

    def _settle(self, outcomes: Mapping[_Job, Outcome]) -> None:
        """Answer requests that the engine is done with, all of them at the same time."""
        now = self._loop.time()
        rankings: dict[_Job, Ranking] = {}
        errors: dict[_Job, Exception] = {}
        for job, outcome in outcomes.items():
            self._in_hand.discard(job)
            if isinstance(outcome, Exception):
                errors[job] = outcome
            else:
                rankings[job] = outcome
        self._changed.set()  # the engine is given more first, and the answers are made while it works
        if rankings:
            whole = not any(ranking.expired for ranking in rankings.values())
            self._pace.answered(sum(job.cost for job in rankings), now, whole)
        for job, ranking in rankings.items():
            if ranking.expired:  # the engine gave it up: it knew the deadline, too
                _fail(job, _too_late(job.deadline - job.arrived))
            elif not job.answer.done():
                waited = now - job.arrived - sum(ranking.seconds.values())
                job.answer.set_result(Ranked(ranking, max(0.0, waited)))
        if errors:
            self._pace.failed(sum(job.cost for job in errors), now)
            self._fail_all(errors)

    def _fail_all(self, errors: Mapping[_Job, Exception]) -> None:
        """Of one batch, or of one step."""
        self._metrics.engine_failures.inc()
        error = next(iter(errors.values()))
        lost = isinstance(error, EngineLostError)
        # The engine sees token ids only: its message holds no user text.
        logger.error(
            "a batch was lost" if lost else "the engine failed on a batch",
            extra={"batch": len(errors), "error": type(error).__name__, "reason": str(error)[:500]},
            exc_info=None if lost else error,
        )
        for job in errors:
            _fail(
                job,
                EngineUnavailableError(_LOST)
                if lost
                else EngineFailedError("The model failed on this request; it may be tried again."),
            )


def _fail(job: _Job, error: Exception) -> None:
    if not job.answer.done():
        job.answer.set_exception(error)


def _too_late(seconds: float) -> DeadlineError:
    return DeadlineError(f"No answer within {seconds:.3g} s; ask for less or try again later.")
