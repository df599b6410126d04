"""Batching, admission, deadlines and faults, with the real engine behind a gate."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Awaitable, Callable, Mapping, Sequence
from dataclasses import replace
from types import SimpleNamespace
from typing import Any

import pytest
from support.engines import FailingEngine, GatedEngine, SteppedEngine, assert_same_ranking, hosted

from index.bundle.bundle import Bundle
from server.api.errors import (
    DeadlineError,
    DeadlineUnreachableError,
    EngineFailedError,
    NotReadyError,
    QueueFullError,
)
from server.engine.contract import Engine, OnDone, Ranking, RankRequest
from server.engine.in_process import InProcess
from server.engine.torch_backend.engine import TorchEngine
from server.serving import scheduler as scheduler_module
from server.serving.scheduler import Scheduler
from server.telemetry.metrics import Metrics

Scenario = Callable[[Scheduler], Awaitable[Any]]


@pytest.fixture
def gated(engine: TorchEngine) -> GatedEngine:
    return GatedEngine(engine)


def run(scenario: Scenario, engine: Engine, **settings: Any) -> Any:
    """Run a scenario with a started scheduler, and stop it afterwards."""

    async def main() -> Any:
        options = {"max_batch_size": 4, "window": 0.0, "queue_limit": 3} | settings
        scheduler = Scheduler(hosted(engine), Metrics(), **options)
        await scheduler.start()
        try:
            return await asyncio.wait_for(scenario(scheduler), 20)
        finally:
            await scheduler.stop(5)

    return asyncio.run(main())


def request(bundle: Bundle, limit: int = 5) -> RankRequest:
    return RankRequest(bundle.encoder.prompt([], f"query {limit}").ids, limit, 10)


async def occupied(scheduler: Scheduler, gated: GatedEngine, bundle: Bundle) -> asyncio.Task[Any]:
    """Submit a request that stays in flight until the gate opens."""
    gated.hold()
    task = asyncio.create_task(scheduler.rank(request(bundle), 20))
    assert await asyncio.to_thread(gated.entered.wait, 10)
    return task


async def queued(
    scheduler: Scheduler, *requests: RankRequest, timeout: float = 20
) -> list[asyncio.Task[Any]]:
    tasks = [asyncio.create_task(scheduler.rank(each, timeout)) for each in requests]
    await asyncio.sleep(0)
    return tasks


def test_answers_are_those_of_the_engine_alone(bundle: Bundle, engine: TorchEngine) -> None:
    requests = [request(bundle, limit) for limit in (3, 9, 5)]

    async def scenario(scheduler: Scheduler) -> Any:
        return await asyncio.gather(*(scheduler.rank(each, 20) for each in requests))

    for each, ranked in zip(requests, run(scenario, engine), strict=True):
        alone = engine.rank([each])[0]
        assert ranked.items == alone.items
        assert ranked.scores == pytest.approx(alone.scores, abs=1e-5)
        assert ranked.seconds["queue"] >= 0


def test_what_waits_together_is_ranked_together_in_order(bundle: Bundle, gated: GatedEngine) -> None:
    async def scenario(scheduler: Scheduler) -> None:
        first = await occupied(scheduler, gated, bundle)
        rest = await queued(scheduler, *(request(bundle, limit) for limit in range(1, 8)))
        gated.gate.set()
        await asyncio.gather(first, *rest)

    run(scenario, gated, queue_limit=10)
    assert [[each.limit for each in batch] for batch in gated.batches] == [[5], [1, 2, 3, 4], [5, 6, 7]]


def test_idle_engine_waits_the_window_for_company(bundle: Bundle, gated: GatedEngine) -> None:
    async def scenario(scheduler: Scheduler) -> None:
        first = await queued(scheduler, request(bundle, 1))
        await asyncio.sleep(0.02)
        await asyncio.gather(*first, *await queued(scheduler, request(bundle, 2)))

    run(scenario, gated, window=5.0, max_batch_size=2)  # a full batch does not wait for the window's end
    assert [len(batch) for batch in gated.batches] == [2]


def test_full_queue_refuses_at_once(bundle: Bundle, gated: GatedEngine) -> None:
    async def scenario(scheduler: Scheduler) -> None:
        first = await occupied(scheduler, gated, bundle)
        waiting = await queued(scheduler, *[request(bundle)] * 3)
        began = time.perf_counter()
        with pytest.raises(QueueFullError) as refusal:
            await scheduler.rank(request(bundle), 20)
        assert time.perf_counter() - began < 0.05
        assert 1 <= int(refusal.value.headers["Retry-After"]) <= 60
        gated.gate.set()
        await asyncio.gather(first, *waiting)
        await scheduler.rank(request(bundle), 20)  # room again

    run(scenario, gated, max_batch_size=1)


def test_what_the_engine_has_room_for_fills_no_queue(bundle: Bundle, gated: GatedEngine) -> None:
    """A burst to an idle engine may fill a whole batch and the queue."""

    async def scenario(scheduler: Scheduler) -> None:
        asked = await queued(scheduler, *[request(bundle)] * 8)
        answers = await asyncio.gather(*asked, return_exceptions=True)
        assert [type(answer) for answer in answers] == [Ranking] * 7 + [QueueFullError]

    run(scenario, gated, max_batch_size=4, queue_limit=3)


def test_the_queue_is_short_for_a_while_after_it_was_full(
    bundle: Bundle, gated: GatedEngine, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The limit is half a batch, and the full length again when no request was refused for some time."""
    monkeypatch.setattr(scheduler_module, "OVERLOADED", 0.3)

    async def scenario(scheduler: Scheduler) -> None:
        busy = await queued(scheduler, *[request(bundle)] * 10)
        await asyncio.gather(*busy, return_exceptions=True)
        refused_at = time.monotonic()
        lengths = [scheduler.queue_limit]
        while scheduler.queue_limit == 2:
            assert time.monotonic() < refused_at + 5
            await asyncio.sleep(0.01)
        assert time.monotonic() > refused_at + 0.1
        lengths.append(scheduler.queue_limit)
        assert lengths == [2, 5]

    run(scenario, gated, max_batch_size=4, queue_limit=5)


@pytest.mark.parametrize(("batch", "limit", "short"), [(1, 5, 1), (8, 3, 3), (8, 100, 4)])
def test_a_short_queue_is_never_longer_than_the_whole_one(
    bundle: Bundle, gated: GatedEngine, batch: int, limit: int, short: int
) -> None:
    async def scenario(scheduler: Scheduler) -> None:
        assert scheduler.queue_limit == limit
        asked = await queued(scheduler, *[request(bundle)] * (batch + limit + 1))
        await asyncio.gather(*asked, return_exceptions=True)
        assert scheduler.queue_limit == short

    run(scenario, gated, max_batch_size=batch, queue_limit=limit)


def test_a_deadline_that_the_queue_will_exceed_is_refused_at_once(bundle: Bundle, gated: GatedEngine) -> None:
    async def scenario(scheduler: Scheduler) -> None:
        await scheduler.rank(request(bundle), 20)  # how fast the engine is
        with pytest.raises(DeadlineError):
            await scheduler.rank(request(bundle), 1e-6)  # the queue is empty, but its own time is too short
        first = await occupied(scheduler, gated, bundle)
        waiting = await queued(scheduler, request(bundle), request(bundle))
        with pytest.raises(DeadlineUnreachableError) as refusal:
            await scheduler.rank(request(bundle), 1e-6)
        assert int(refusal.value.headers["Retry-After"]) >= 1
        part = asyncio.create_task(scheduler.rank(request(bundle), 20, admitted=True))
        gated.gate.set()
        await asyncio.gather(first, *waiting, part)

    run(scenario, gated)


def test_what_the_engine_gave_up_is_too_late(bundle: Bundle, engine: TorchEngine) -> None:
    """Engines with deadlines mark the ranking as expired; it is not an empty answer."""

    class Hasty:
        everything = engine.everything
        everything_for = engine.everything_for

        def rank(self, requests: Sequence[RankRequest]) -> list[Any]:
            return [SimpleNamespace(items=[], scores=[], seconds={}, expired=True) for _ in requests]

    async def scenario(scheduler: Scheduler) -> None:
        with pytest.raises(DeadlineError):
            await scheduler.rank(request(bundle), 20)

    run(scenario, Hasty())


@pytest.mark.parametrize("slow", ["answered", "given up"])
def test_batches_given_up_make_the_engine_look_no_faster(
    bundle: Bundle, gated: GatedEngine, slow: str
) -> None:
    given_up = replace(request(bundle), deadline=time.monotonic() - 1)

    async def given_up_after(scheduler: Scheduler, seconds: float) -> None:
        gated.hold()
        task = asyncio.create_task(scheduler.rank(given_up, 20))
        await asyncio.sleep(seconds)
        gated.gate.set()
        with pytest.raises(DeadlineError):
            await task

    async def scenario(scheduler: Scheduler) -> None:
        if slow == "answered":
            first = await occupied(scheduler, gated, bundle)
            await asyncio.sleep(0.5)
            gated.gate.set()
            await first
        else:
            await given_up_after(scheduler, 0.5)
        for _ in range(30):
            await given_up_after(scheduler, 0)
        first = await occupied(scheduler, gated, bundle)
        waiting = await queued(scheduler, request(bundle))
        with pytest.raises(DeadlineUnreachableError):
            await scheduler.rank(request(bundle), 0.45)
        gated.gate.set()
        await asyncio.gather(first, *waiting)

    run(scenario, gated)


def test_expired_and_cancelled_requests_are_never_ranked(bundle: Bundle, gated: GatedEngine) -> None:
    async def scenario(scheduler: Scheduler) -> None:
        first = await occupied(scheduler, gated, bundle)
        (expiring,) = await queued(scheduler, request(bundle, 1), timeout=0.05)
        cancelled, kept = await queued(scheduler, request(bundle, 2), request(bundle, 3))
        cancelled.cancel()
        with pytest.raises(DeadlineError):
            await expiring
        assert scheduler.depth == 1  # cancelled requests make room at once
        gated.gate.set()
        await asyncio.gather(first, kept)

    run(scenario, gated)
    assert [[each.limit for each in batch] for batch in gated.batches] == [[5], [3]]


def test_a_client_that_goes_is_known_to_the_engine_that_works_for_it(
    bundle: Bundle, gated: GatedEngine
) -> None:
    async def scenario(scheduler: Scheduler) -> None:
        task = await occupied(scheduler, gated, bundle)
        asked = gated.batches[0][0]
        assert not asked.expired
        task.cancel()
        await asyncio.wait([task])
        assert asked.expired
        gated.gate.set()

    run(scenario, gated)


def test_deadline_holds_while_the_engine_computes(bundle: Bundle, gated: GatedEngine) -> None:
    async def scenario(scheduler: Scheduler) -> None:
        gated.hold()
        with pytest.raises(DeadlineError):
            await scheduler.rank(request(bundle), 0.1)
        gated.gate.set()
        await scheduler.rank(request(bundle), 20)

    run(scenario, gated)


def test_engine_failure_fails_its_batch_alone(bundle: Bundle, engine: TorchEngine) -> None:
    async def scenario(scheduler: Scheduler) -> None:
        for _ in range(3):
            with pytest.raises(EngineFailedError):
                await scheduler.rank(request(bundle, 13), 20)
            assert (await scheduler.rank(request(bundle, 5), 20)).items

    run(scenario, FailingEngine(engine, limit=13))


def test_stop_finishes_what_waits_and_refuses_what_comes(bundle: Bundle, gated: GatedEngine) -> None:
    async def scenario(scheduler: Scheduler) -> None:
        tasks = [await occupied(scheduler, gated, bundle), *await queued(scheduler, request(bundle, 2))]
        stopping = asyncio.create_task(scheduler.stop(10))
        await asyncio.sleep(0)
        with pytest.raises(NotReadyError):
            await scheduler.rank(request(bundle), 20)
        gated.gate.set()
        assert all(ranked.items for ranked in await asyncio.gather(*tasks))
        await stopping

    run(scenario, gated)


def test_stop_gives_up_after_its_patience(bundle: Bundle, gated: GatedEngine) -> None:
    async def scenario(scheduler: Scheduler) -> None:
        tasks = [await occupied(scheduler, gated, bundle), *await queued(scheduler, request(bundle, 2))]
        await scheduler.stop(0.05)
        results = await asyncio.gather(*tasks, return_exceptions=True)
        assert [type(result) for result in results] == [NotReadyError, NotReadyError]
        gated.gate.set()

    run(scenario, gated)


def test_warm_up_is_ranked_before_anything_is_accepted(bundle: Bundle, gated: GatedEngine) -> None:
    async def main() -> None:
        scheduler = Scheduler(hosted(gated), Metrics(), max_batch_size=1, window=0, queue_limit=1)
        with pytest.raises(NotReadyError):
            scheduler.admit()
        await scheduler.start([request(bundle, 7)])
        scheduler.admit()
        await scheduler.stop(1)

    asyncio.run(main())
    assert [len(batch) for batch in gated.batches] == [1]


async def until(condition: Callable[[], bool]) -> None:
    while not condition():
        await asyncio.sleep(0.001)


def test_a_continuous_engine_is_given_more_while_it_works(
    bundle: Bundle, engine: TorchEngine, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("server.engine.torch_backend.search.FULL_PASS_ROWS", 0)  # one step per level
    stepped = SteppedEngine(engine)
    levels = engine.vocabulary.levels

    async def scenario(scheduler: Scheduler) -> list[Any]:
        first = await queued(scheduler, request(bundle, 1), request(bundle, 2))
        await until(lambda: len(stepped.taken) == 1)
        stepped.permits.release(1)
        await until(lambda: stepped.steps == 1)
        later = await queued(scheduler, *(request(bundle, limit) for limit in (3, 4, 5)))
        await until(lambda: len(stepped.taken) == 2)
        assert scheduler.depth == 1  # four are in flight
        stepped.permits.release(levels - 1)
        answers = await asyncio.gather(*first)
        await until(lambda: len(stepped.taken) == 3)  # there is room again
        assert not any(task.done() for task in later)
        stepped.permits.release(100)
        return [*answers, *await asyncio.gather(*later)]

    answers = run(scenario, stepped)
    assert [[each.limit for each in batch] for batch in stepped.taken] == [[1, 2], [3, 4], [5]]
    for limit, ranked in enumerate(answers, start=1):
        assert_same_ranking(ranked, engine.rank([request(bundle, limit)])[0])


def test_who_gives_up_in_the_hands_of_a_continuous_engine_makes_room(
    bundle: Bundle, engine: TorchEngine
) -> None:
    stepped = SteppedEngine(engine)

    async def scenario(scheduler: Scheduler) -> None:
        (given_up,) = await queued(scheduler, request(bundle, 1))
        await until(lambda: len(stepped.taken) == 1)
        (waiting,) = await queued(scheduler, request(bundle, 2))
        given_up.cancel()
        stepped.permits.release(1)
        await until(lambda: len(stepped.taken) == 2)
        stepped.permits.release(100)
        assert (await waiting).items

    run(scenario, stepped, max_batch_size=1)


def test_a_request_that_a_continuous_engine_fails_on_fails_alone(bundle: Bundle, engine: TorchEngine) -> None:
    stepped = SteppedEngine(engine)
    stepped.permits.release(100)

    async def scenario(scheduler: Scheduler) -> list[Any]:
        tasks = await queued(scheduler, RankRequest([1] * 1000, 5, 10), request(bundle, 2))
        return await asyncio.gather(*tasks, return_exceptions=True)

    failed, answered = run(scenario, stepped)
    assert isinstance(failed, EngineFailedError)
    assert len(answered.items) == 2


@pytest.mark.parametrize("patience", [10.0, 0.05])
def test_stop_waits_for_what_a_continuous_engine_has(
    bundle: Bundle, engine: TorchEngine, patience: float
) -> None:
    stepped = SteppedEngine(engine)

    async def scenario(scheduler: Scheduler) -> list[Any]:
        tasks = await queued(scheduler, request(bundle, 1), request(bundle, 2))
        await until(lambda: len(stepped.taken) == 1)
        stopping = asyncio.create_task(scheduler.stop(patience))
        await asyncio.sleep(0)
        if patience < 1:
            await stopping
        stepped.permits.release(100)
        await stopping
        return await asyncio.gather(*tasks, return_exceptions=True)

    for result in run(scenario, stepped, max_batch_size=1):
        assert isinstance(result, NotReadyError) if patience < 1 else result.items


def test_an_engine_that_raises_in_submit_and_reports_later_loses_no_other_answer(
    bundle: Bundle, engine: TorchEngine
) -> None:
    """Requests that failed already are reported again, together with one that was not answered yet."""

    class Late(InProcess):
        def submit(self, requests: Mapping[Any, RankRequest], on_done: OnDone) -> None:
            self.seen = getattr(self, "seen", {}) | dict(requests)
            if len(self.seen) == 1:
                raise RuntimeError("raised after the request was sent")
            rankings = self.rank(list(self.seen.values()))
            on_done(dict(zip(self.seen, rankings, strict=True)))

    async def scenario(scheduler: Scheduler) -> None:
        with pytest.raises(EngineFailedError):
            await scheduler.rank(request(bundle), 20)
        assert (await scheduler.rank(request(bundle), 20)).items

    run(scenario, Late(engine))
