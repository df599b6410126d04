"""Requests that the torch engine has in hand, and the time that their steps take."""

from __future__ import annotations

import time
from dataclasses import dataclass, field

from server.engine.contract import Outcome, Ranking, RankRequest
from server.engine.torch_backend.search import Search

STAGES = ("prefill", "decode", "head", "trie")


@dataclass(eq=False, slots=True)
class Running:
    """A search, and the time of its steps, by stages."""

    search: Search
    seconds: dict[str, float] = field(default_factory=lambda: dict.fromkeys(STAGES, 0.0))


@dataclass(slots=True)
class Stopwatch:
    """Of one step."""

    seconds: dict[str, float] = field(default_factory=lambda: dict.fromkeys(("forward", "head", "trie"), 0.0))
    last: float = field(default_factory=time.perf_counter)

    def lap(self, stage: str) -> None:
        now = time.perf_counter()
        self.seconds[stage] += now - self.last
        self.last = now


def given_up(waiting: dict[int, RankRequest], running: dict[int, Running]) -> dict[int, Outcome]:
    """Take out the requests for which nobody waits any more."""
    outcomes: dict[int, Outcome] = {}
    for number in [number for number, request in waiting.items() if request.expired]:
        del waiting[number]
        outcomes[number] = Ranking([], [], expired=True)
    for number in [number for number, each in running.items() if each.search.request.expired]:
        left = running.pop(number)
        outcomes[number] = Ranking([], [], left.seconds, left.search.cached_tokens, expired=True)
    return outcomes
