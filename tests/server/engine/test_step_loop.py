"""The loop that both back ends share, driven by a back end that is scripted step by step."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field

import numpy as np
import pytest

from index.trie.allowed import Allowed
from index.trie.trie import Trie
from server.engine.beam import Beam
from server.engine.contract import EngineBrokenError, EngineError, Outcome, Ranking, RankRequest
from server.engine.step_loop import serve_in_steps
from server.engine.waiting import rank_by_serving, rank_by_submitting

ALLOWED = Allowed.of(Trie.build(np.arange(4)[:, None]))


@dataclass(eq=False)
class Countdown:
    """A search that takes `limit` steps; then its beam is the first leaf."""

    request: RankRequest
    steps: int = 0
    allowed: Allowed = ALLOWED
    level: int = 1
    beam: Beam = field(default_factory=Beam.root)
    seconds: dict[str, float] = field(default_factory=dict)
    cached_tokens: int = 0
    pool_scores: list[float] = field(default_factory=list)
    state: list[float] = field(default_factory=list)

    @property
    def done(self) -> bool:
        return self.steps >= self.request.limit


class Scripted:
    """A back end with `room` searches at a time, which fails as it is told.

    steps: the requests of each step, by their limits. abandoned: searches that were abandoned unfinished.
    """

    def __init__(self, room: int = 8, fail_at: int = 0, error: Exception | None = None) -> None:
        self.room, self.fail_at, self.error = room, fail_at, error
        self.refused: set[int] = set()
        self.steps: list[list[int]] = []
        self.abandoned: list[int] = []

    def begin(self, request: RankRequest, running: Sequence[Countdown]) -> Countdown | None:
        if request.limit in self.refused:
            raise EngineError("does not fit")
        return Countdown(request) if len(running) < self.room else None

    def step(self, searches: Sequence[Countdown]) -> None:
        self.steps.append([search.request.limit for search in searches])
        if self.error is not None and len(self.steps) == self.fail_at:
            raise self.error
        for search in searches:
            search.steps += 1

    def abandon(self, searches: Sequence[Countdown]) -> None:
        self.abandoned += [search.request.limit for search in searches]

    def after_step(self, outcomes: dict[int, Outcome]) -> None:
        pass

    def serve(
        self,
        requests: Mapping[int, RankRequest],
        arrivals: Callable[[], Mapping[int, RankRequest]],
        on_done: Callable[[Mapping[int, Outcome]], None],
    ) -> None:
        serve_in_steps(self, requests, arrivals, on_done)

    def run(
        self, *requests: RankRequest, later: Mapping[int, RankRequest] | None = None
    ) -> dict[int, Outcome]:
        """Serve requests, those `later` before their step, and return all outcomes."""
        outcomes: dict[int, Outcome] = {}

        def arrivals() -> dict[int, RankRequest]:
            return {step: request for step, request in (later or {}).items() if step == len(self.steps) + 100}

        self.serve(dict(enumerate(requests)), arrivals, outcomes.update)
        return outcomes


def ask(steps: int, cancelled: Callable[[], bool] = bool) -> RankRequest:
    return RankRequest([1], steps, 1, cancelled=cancelled)


def test_each_request_is_reported_once_when_it_is_done() -> None:
    back_end = Scripted()
    reports: list[list[int]] = []
    serve_in_steps(
        back_end, {0: ask(2), 1: ask(1), 2: ask(2)}, dict, lambda some: reports.append(sorted(some))
    )
    assert back_end.steps == [[2, 1, 2], [2, 2]]
    assert reports == [[1], [0, 2]]
    assert back_end.abandoned == []


def test_requests_begin_in_order_of_arrival_and_none_overtakes_one_that_waits() -> None:
    back_end = Scripted(room=1)
    outcomes = back_end.run(ask(2), ask(1), ask(3))
    assert back_end.steps == [[2], [2], [1], [3], [3], [3]]
    assert sorted(outcomes) == [0, 1, 2]


def test_arrivals_join_between_two_steps() -> None:
    back_end = Scripted()
    outcomes = back_end.run(ask(3), later={101: ask(1)})
    assert back_end.steps == [[3], [3, 1], [3]]
    assert sorted(outcomes) == [0, 101]


def test_a_request_that_cannot_begin_fails_alone() -> None:
    back_end = Scripted()
    back_end.refused = {2}
    outcomes = back_end.run(ask(1), ask(2), ask(3))
    assert isinstance(outcomes[1], EngineError)
    assert all(isinstance(outcomes[k], Ranking) for k in (0, 2))


def test_a_step_that_fails_fails_those_that_took_part_and_the_loop_goes_on() -> None:
    error = RuntimeError("no memory")
    back_end = Scripted(room=2, fail_at=2, error=error)
    outcomes = back_end.run(ask(3), ask(2), ask(1))
    assert (outcomes[0], outcomes[1]) == (error, error)
    assert back_end.abandoned == [3, 2]
    assert isinstance(outcomes[2], Ranking)


def test_a_broken_engine_ends_the_loop_and_releases_all_searches() -> None:
    back_end = Scripted(fail_at=1, error=EngineBrokenError("gone for good"))
    with pytest.raises(EngineBrokenError):
        back_end.run(ask(2), ask(3))
    assert back_end.abandoned == [2, 3]


def test_nobody_computes_for_requests_that_expired_while_waiting_or_running() -> None:
    back_end = Scripted(room=1)
    running = ask(5, cancelled=lambda: len(back_end.steps) >= 2)
    waiting = ask(4, cancelled=lambda: len(back_end.steps) >= 1)
    outcomes = back_end.run(running, waiting, ask(1))
    assert back_end.steps == [[5], [5], [1]]
    assert back_end.abandoned == [5]
    assert [outcome.expired for _, outcome in sorted(outcomes.items())] == [True, True, False]  # type: ignore[union-attr]


def test_what_a_caller_raises_ends_the_loop_and_releases_all_searches() -> None:
    back_end = Scripted()

    def on_done(outcomes: Mapping[int, Outcome]) -> None:
        raise ConnectionError("the pipe is closed")

    with pytest.raises(ConnectionError):
        serve_in_steps(back_end, {0: ask(1), 1: ask(2)}, dict, on_done)
    assert back_end.abandoned == [2]


def test_a_batch_by_serving_raises_its_first_failure() -> None:
    back_end = Scripted()
    assert [ranking.items for ranking in rank_by_serving(back_end, [ask(1), ask(2)])] == [[0], [0]]  # type: ignore[arg-type]
    back_end.refused = {2}
    with pytest.raises(EngineError, match="does not fit"):
        rank_by_serving(back_end, [ask(1), ask(2)])  # type: ignore[arg-type]


def test_a_batch_by_submitting_waits_for_all_before_it_raises() -> None:
    seen: list[int] = []

    def submit(requests: Mapping[int, RankRequest], on_done: Callable[[Mapping[int, Outcome]], None]) -> None:
        for key in reversed(requests):
            seen.append(key)
            on_done({key: EngineError(f"number {key}") if key else Ranking([7], [0.0])})

    assert rank_by_submitting(submit, []) == []
    with pytest.raises(EngineError, match="number 1"):
        rank_by_submitting(submit, [ask(1), ask(1), ask(1)])
    assert seen == [2, 1, 0]
