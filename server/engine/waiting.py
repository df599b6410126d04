"""Waiting for a batch: rankings from engines that report outcomes by a callback, and the check of the first."""

from __future__ import annotations

import math
import threading
from collections.abc import Callable, Mapping, Sequence
from typing import Any

from server.engine.contract import EngineError, OnDone, Outcome, Ranking, RankRequest, StepwiseEngine


def rank_by_serving(engine: StepwiseEngine, requests: Sequence[RankRequest]) -> list[Ranking]:
    """Rank a batch by `StepwiseEngine.serve`, in order. Raises the first failure."""
    rankings: dict[int, Ranking] = {}

    def on_done(outcomes: Mapping[int, Outcome]) -> None:
        for number, outcome in outcomes.items():
            rankings[number] = _ranking(outcome)

    engine.serve(dict(enumerate(requests)), dict, on_done)
    return [rankings[number] for number in range(len(requests))]


def rank_by_submitting(
    submit: Callable[[Mapping[Any, RankRequest], OnDone], None], requests: Sequence[RankRequest]
) -> list[Ranking]:
    """Rank a batch by `HostedEngine.submit`, in order. Waits for all outcomes, then raises the first failure."""
    outcomes: dict[Any, Outcome] = {}
    complete = threading.Event()

    def on_done(some: Mapping[Any, Outcome]) -> None:
        outcomes.update(some)
        if len(outcomes) == len(requests):
            complete.set()

    if requests:
        submit(dict(enumerate(requests)), on_done)
        complete.wait()
    return [_ranking(outcomes[number]) for number in range(len(requests))]


def warmed_up(rankings: Sequence[Ranking]) -> None:
    """Raise `EngineError` if a ranking of the warm-up has a score that no answer may have."""
    if not all(math.isfinite(score) for each in rankings for score in each.scores):
        raise EngineError("the model's scores are not finite: its weights are damaged, or training diverged")


def _ranking(outcome: Outcome) -> Ranking:
    if isinstance(outcome, Exception):
        raise outcome
    return outcome
