"""Engines around a real one, for tests that need to hold it or to make it fail."""

from __future__ import annotations

import threading
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from server.engine.contract import Engine, HostedEngine, OnDone, Ranking, RankRequest
from server.engine.in_process import InProcess
from server.engine.torch_backend.engine import TorchEngine


def hosted(engine: Engine) -> HostedEngine:
    """The engine with the life cycle that schedulers and applications need."""
    return engine if hasattr(engine, "submit") else InProcess(engine)


class GatedEngine:
    """Engine that ranks with `engine` only while its gate is open. batches: the batches that it has received."""

    def __init__(self, engine: Engine) -> None:
        self.engine = engine
        self.everything = engine.everything
        self.everything_for = engine.everything_for
        self.gate = threading.Event()
        self.gate.set()
        self.entered = threading.Event()  # set whenever a batch has reached the engine
        self.batches: list[list[RankRequest]] = []

    def hold(self) -> None:
        self.gate.clear()
        self.entered.clear()

    def rank(self, requests: Sequence[RankRequest]) -> list[Ranking]:
        self.batches.append(list(requests))
        self.entered.set()
        if not self.gate.wait(20):
            raise TimeoutError("the test never opened the gate")
        return self.engine.rank(requests)


class FailingEngine:
    """Engine that fails on batches with a request of a certain limit, and ranks the others with `engine`."""

    def __init__(self, engine: Engine, limit: int) -> None:
        self.engine = engine
        self.everything = engine.everything
        self.everything_for = engine.everything_for
        self.limit = limit

    def rank(self, requests: Sequence[RankRequest]) -> list[Ranking]:
        if any(request.limit == self.limit for request in requests):
            raise RuntimeError("the engine was told to fail")
        return self.engine.rank(requests)


class SteppedEngine(InProcess):
    """A hosted engine around the real one that takes requests while it works, and a step for each permit.

    taken: the requests that it has received.
    steps: number of steps that it has begun.
    """

    def __init__(self, engine: TorchEngine) -> None:
        super().__init__(engine)
        self.engine = engine
        self.permits = threading.Semaphore(0)
        self.taken: list[list[RankRequest]] = []
        self.steps = 0
        self._lock = threading.Lock()
        self._arrived: dict[Any, RankRequest] = {}
        self._working = False

    def submit(self, requests: Mapping[Any, RankRequest], on_done: OnDone) -> None:
        with self._lock:
            self._arrived.update(requests)
            self.taken.append(list(requests.values()))
            begin, self._working = not self._working, True
        if begin:
            threading.Thread(target=self._work, args=(on_done,), daemon=True).start()

    def _work(self, on_done: OnDone) -> None:
        while self._working:
            self.engine.serve({}, self._arrivals, on_done)
            with self._lock:
                self._working = bool(self._arrived)

    def _arrivals(self) -> dict[Any, RankRequest]:
        if not self.permits.acquire(timeout=20):
            raise TimeoutError("the test never allowed the next step")
        with self._lock:
            arrived, self._arrived = self._arrived, {}
            self.steps += 1
        return arrived


def assert_same_ranking(ranking: Ranking, expected: Ranking) -> None:
    """Assert the same items in the same order, the same pool and state, which differ at most by rounding."""
    assert ranking.items == expected.items
    assert np.allclose(ranking.scores, expected.scores, rtol=0, atol=1e-3)
    assert len(ranking.pool_scores) == len(expected.pool_scores)
    assert np.allclose(ranking.pool_scores, expected.pool_scores, rtol=0, atol=1e-3)
    assert len(ranking.state) == len(expected.state)
    assert np.allclose(ranking.state, expected.state, rtol=0, atol=1e-3)
