"""Requests that join while the torch engine ranks others, measured in steps instead of time."""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from support.bundles import make_model
from support.engines import assert_same_ranking

from index.sequence.vocabulary import IdentifierVocabulary
from index.trie.trie import Trie
from server.engine.contract import EngineError, Outcome, Ranking, RankRequest
from server.engine.options import EngineOptions
from server.engine.torch_backend.engine import TorchEngine
from server.engine.torch_backend.forward_input import ForwardInput

LEVELS = 4
LENGTHS = (1, 7, 30, 95)


def make_engine(**options: int) -> TorchEngine:
    """Make an engine whose dense catalogue leaves no look-ahead: a beam of ten takes exactly one step per level."""
    rng = np.random.default_rng(0)
    every = np.stack(np.meshgrid(np.arange(40), *[np.arange(4)] * 3), axis=-1).reshape(-1, LEVELS)
    codes = rng.permutation(every)[:1700]
    vocabulary = IdentifierVocabulary(40, tuple(int(k) for k in codes.max(0) + 1))
    model = make_model(vocabulary.size, positions=128)
    return TorchEngine(
        model, Trie.build(codes), vocabulary, options=EngineOptions(precision="float32", **options)
    )


ENGINE = make_engine()


def ask(
    length: int,
    seed: int = 0,
    width: int = 10,
    limit: int | None = None,
    cancelled: Callable[[], bool] = bool,
    pool: int = 0,
) -> RankRequest:
    """Make a request. The default limit is the whole beam, so that no hypothesis is dropped early.

    pool: number of items in its pool.
    """
    rng = np.random.default_rng([seed, length])
    ids = rng.integers(1, 43, length).tolist()
    items = rng.permutation(ENGINE.everything.trie.items)[:pool].tolist()
    return RankRequest(ids, limit or width, width, pool=items, cancelled=cancelled)


@dataclass
class Run:
    """Outcomes of requests that arrive before given steps, each with the step after which it was known."""

    engine: TorchEngine
    schedule: Mapping[int, Sequence[RankRequest]]  # by step; the first is 0
    step: int = -1
    passes: list[list[ForwardInput]] = field(default_factory=list)
    outcomes: dict[int, tuple[int, Outcome]] = field(default_factory=dict)

    def __post_init__(self) -> None:
        self.requests = [each for step in sorted(self.schedule) for each in self.schedule[step]]
        self._coming = [step for step in sorted(self.schedule) for _ in self.schedule[step]]

    def go(self, monkeypatch: pytest.MonkeyPatch, fails: int | None = None) -> Run:
        """Run the engine. fails: a step whose forward pass fails."""
        forward = self.engine._backbone.forward

        def watched(feeds: Sequence[ForwardInput]) -> object:
            self.passes.append(list(feeds))
            if self.step == fails:
                raise RuntimeError("the pass was told to fail")
            return forward(feeds)

        with monkeypatch.context() as patch:
            patch.setattr(self.engine._backbone, "forward", watched)
            while len(self.outcomes) < len(self.requests):  # `serve` ends when no request is in flight
                self.engine.serve({}, self._arrivals, self._answered)
        return self

    def _arrivals(self) -> dict[int, RankRequest]:
        self.step += 1
        return {k: self.requests[k] for k, step in enumerate(self._coming) if step == self.step}

    def _answered(self, outcomes: Mapping[int, Outcome]) -> None:
        for number, outcome in outcomes.items():
            assert number not in self.outcomes
            self.outcomes[number] = (self.step, outcome)

    def ranking(self, number: int) -> Ranking:
        outcome = self.outcomes[number][1]
        assert isinstance(outcome, Ranking), outcome
        return outcome

    def last_step(self, number: int) -> int:
        return self.outcomes[number][0]


arrivals = st.lists(
    st.tuples(
        st.integers(0, 12), st.sampled_from(LENGTHS), st.integers(1, 30), st.sampled_from([0, 0, 3, 20])
    ),
    min_size=1,
    max_size=8,
)


@given(arrivals, st.sampled_from([0, 40, 10_000]), st.sampled_from([1, 200, 10_000]))
@settings(max_examples=40, deadline=None)
def test_answers_do_not_depend_on_when_others_arrive(
    shapes: list[tuple[int, int, int, int]], join_rows: int, max_batch_tokens: int
) -> None:
    ENGINE.options = replace(ENGINE.options, join_rows=join_rows, max_batch_tokens=max_batch_tokens)
    schedule: dict[int, list[RankRequest]] = {}
    for k, (step, length, width, pool) in enumerate(shapes):
        schedule.setdefault(step, []).append(ask(length, k, width, limit=min(5, width), pool=pool))
    with pytest.MonkeyPatch.context() as monkeypatch:
        run = Run(ENGINE, schedule).go(monkeypatch)
    ENGINE.options = replace(ENGINE.options, join_rows=0, max_batch_tokens=10_000)
    for number, request in enumerate(run.requests):
        assert_same_ranking(run.ranking(number), ENGINE.rank([request])[0])
    for feeds in run.passes:
        memories = {feed.segment.key_values for feed in feeds}
        begun = {feed.segment.key_values for feed in feeds if feed.segment.own is None}
        if begun and begun != memories:
            ahead = [
                feed for feed in feeds if feed.segment.own is not None and feed.segment.key_values in begun
            ]
            assert sum(feed.segment.rows for feed in feeds if feed not in ahead) <= join_rows
        assert len(memories) == 1 or sum(memory.capacity for memory in memories) <= max_batch_tokens


def test_who_arrives_during_a_batch_is_answered_without_waiting_for_its_end(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    schedule = {0: [ask(30), ask(30, 1)], 1: [ask(7)]}
    joined = Run(make_engine(join_rows=10_000), schedule).go(monkeypatch)
    waited = Run(make_engine(join_rows=0), schedule).go(monkeypatch)
    for run in (joined, waited):
        assert [run.last_step(number) for number in (0, 1)] == [LEVELS - 1] * 2
    assert joined.last_step(2) == LEVELS  # one step later than the requests that began one step earlier
    assert waited.last_step(2) == 2 * LEVELS - 1


def test_a_pool_counts_as_the_prompt_does_where_a_request_joins(monkeypatch: pytest.MonkeyPatch) -> None:
    """Prefixes of up to three codes for each of its items go into the first pass."""
    for pool, steps in ((5, LEVELS), (30, 2 * LEVELS - 1)):
        run = Run(make_engine(join_rows=60), {0: [ask(30)], 1: [ask(7, pool=pool)]}).go(monkeypatch)
        assert [run.last_step(number) for number in (0, 1)] == [LEVELS - 1, steps]
        assert len(run.ranking(1).pool_scores) == pool


def test_requests_that_fit_one_by_one_are_answered_one_by_one(monkeypatch: pytest.MonkeyPatch) -> None:
    """The first does not wait for the last of a long list."""
    run = Run(make_engine(max_batch_tokens=1), {0: [ask(30, k) for k in range(3)]}).go(monkeypatch)
    assert [run.last_step(number) for number in range(3)] == [LEVELS * k - 1 for k in (1, 2, 3)]


def test_a_long_prompt_neither_waits_for_ever_nor_keeps_others_waiting(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """Short requests come with every step. The long one does not fit next to them, but none overtakes it."""
    schedule = {step: [ask(7, step)] for step in range(20)}
    schedule[2] = [ask(95), ask(7, 99)]
    run = Run(make_engine(join_rows=60), schedule).go(monkeypatch)
    long, after = 2, 3
    assert run.last_step(1) < run.last_step(long) <= 1 + 2 * LEVELS
    assert run.last_step(after) == run.last_step(long)  # they begin together
    ends = [run.last_step(number) for number in range(len(run.requests))]
    assert ends == sorted(ends)


def test_a_step_that_fails_fails_who_took_part_and_nobody_else(monkeypatch: pytest.MonkeyPatch) -> None:
    engine = make_engine(join_rows=0)
    run = Run(engine, {0: [ask(30), ask(7)], 1: [ask(30, 1)], 9: [ask(7, 1)]}).go(monkeypatch, fails=2)
    for number in (0, 1):
        assert run.last_step(number) == 2
        assert "told to fail" in str(run.outcomes[number][1])
    for number in (2, 3):
        assert_same_ranking(run.ranking(number), engine.rank([run.requests[number]])[0])


def test_a_request_that_cannot_be_begun_fails_alone(monkeypatch: pytest.MonkeyPatch) -> None:
    run = Run(ENGINE, {0: [ask(30), ask(127), ask(7)], 1: [ask(128)]}).go(monkeypatch)
    for number in (1, 3):
        assert isinstance(error := run.outcomes[number][1], EngineError)
        assert "leaves no room" in str(error)
    assert [len(run.ranking(number).items) for number in (0, 2)] == [10, 10]


def test_who_is_gone_is_left_before_the_next_step(monkeypatch: pytest.MonkeyPatch) -> None:
    runs: list[Run] = []
    running, waiting = (
        ask(30, cancelled=lambda: runs[0].step >= 2),
        ask(7, cancelled=lambda: runs[0].step >= 1),
    )
    runs.append(run := Run(make_engine(join_rows=0), {0: [running, ask(7)], 1: [waiting]}))
    run.go(monkeypatch)
    assert [run.last_step(number) for number in range(3)] == [2, LEVELS - 1, 1]
    assert [run.ranking(number).expired for number in range(3)] == [True, False, True]
    assert [len(feeds) for feeds in run.passes] == [2, 2, 1, 1]


def test_stages_are_those_of_the_steps_that_a_request_took_part_in(monkeypatch: pytest.MonkeyPatch) -> None:
    began = time.perf_counter()
    run = Run(make_engine(join_rows=0), {0: [ask(95)], 1: [ask(7)]}).go(monkeypatch)
    wall = time.perf_counter() - began
    first, second = (run.ranking(number).seconds for number in range(2))
    assert min(*first.values(), *second.values()) > 0
    assert sum(first.values()) + sum(second.values()) < wall  # they shared no step
