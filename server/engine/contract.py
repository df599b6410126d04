"""What every engine does: `rank(requests) → rankings`, a batch at a time. Some take requests while they work."""

from __future__ import annotations

import math
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, Protocol, runtime_checkable

from index.trie.allowed import Allowed


class EngineError(Exception):
    """The engine cannot rank; the message says what is wrong with the request or the bundle."""


class EngineLostError(EngineError):
    """The engine's process died or hung while it had this request, or is not there."""


def _wanted() -> bool:
    return False


@dataclass(frozen=True, slots=True)
class RankRequest:
    """One prompt to be continued by item identifiers.

    prompt: token ids, as `SequenceEncoder.prompt` makes them.
    limit: how many items to return at most.
    beam_width: hypotheses kept per level; raised to `limit` where smaller.
    allowed: which items may come back, of which index version; None for all that the engine was opened with.
    history: tokens at the start of the prompt that later requests may share, and that a cache should keep; None for
    all of it, 0 for nothing.
    deadline: `time.monotonic()` after which nobody waits for the answer any more.
    gone: whether nobody waits for it already; asked on any thread while the engine computes.
    """

    prompt: Sequence[int]
    limit: int
    beam_width: int
    allowed: Allowed | None = None
    history: int | None = None
    deadline: float = math.inf
    gone: Callable[[], bool] = field(default=_wanted, compare=False)

    def __post_init__(self) -> None:
        if not self.prompt:
            raise EngineError("the prompt holds no token")
        if self.limit < 1 or self.beam_width < 1:
            raise EngineError(
                f"limit and beam_width must be at least 1, got {self.limit} and {self.beam_width}"
            )

    @property
    def width(self) -> int:
        """Hypotheses kept per level."""
        return max(self.beam_width, self.limit)

    @property
    def expired(self) -> bool:
        """Whether nobody waits for the answer any more."""
        return self.deadline < time.monotonic() or self.gone()

    def check_fits(self, allowed: Allowed, levels: int, positions: int) -> None:
        """Raise `EngineError` unless identifiers have so many levels and the prompt leaves room for one.

        allowed: what may come back. positions: of the model's context.
        """
        if allowed.trie.levels != levels:
            raise EngineError(f"identifiers of {levels} codes are needed")
        if len(self.prompt) + levels > positions:
            raise EngineError(
                f"a prompt of {len(self.prompt)} tokens leaves no room for {levels} codes in a context "
                f"of {positions} positions"
            )


@dataclass(frozen=True, slots=True)
class Ranking:
    """The answer to one request: catalogue rows, best first, with log-probabilities of their identifiers.

    Items that share one identifier share its score. `seconds` holds the time spent in each stage, by the steps that
    the request took part in.
    cached_tokens: of the prompt, not computed anew. expired: the request was given up; there are no items then.
    """

    items: list[int]
    scores: list[float]
    seconds: dict[str, float] = field(default_factory=dict)
    cached_tokens: int = 0
    expired: bool = False


class Engine(Protocol):
    """Exact constrained beam search: the best `limit` legal items under a beam of `beam_width`."""

    @property
    def everything(self) -> Allowed:
        """Every item of the index that it was opened with, but for removed ones."""
        ...

    def rank(self, requests: Sequence[RankRequest]) -> list[Ranking]:
        """Rank a batch. The answer to a request does not depend on its neighbours. Raises `EngineError`."""
        ...


Outcome = Ranking | Exception  # an answer, or why there is none
Answered = Callable[[Mapping[Any, Outcome]], None]  # told what has become of requests, by their keys


class StepwiseEngine(Engine, Protocol):
    """An engine that takes further requests between two of its steps, on the thread that computes."""

    def serve(
        self,
        requests: Mapping[int, RankRequest],
        arrivals: Callable[[], Mapping[int, RankRequest]],
        answered: Callable[[Mapping[int, Outcome]], None],
    ) -> None:
        """Rank requests and what arrives meanwhile, until nothing is in hand and nothing arrives.

        requests: by numbers of the caller's. arrivals: asked before each step for those that came since; their numbers
        are not of requests in hand.
        answered: told what has become of requests, as soon as it is known. A request that cannot be begun fails by
        itself; a step that fails fails those that took part in it. What the two raise ends all.
        """
        ...


def rank_at_once(engine: StepwiseEngine, requests: Sequence[RankRequest]) -> list[Ranking]:
    """`Engine.rank` by `serve`. Raises the first failure."""
    rankings: dict[int, Ranking] = {}

    def answered(outcomes: Mapping[int, Outcome]) -> None:
        for number, outcome in outcomes.items():
            if isinstance(outcome, Exception):
                raise outcome
            rankings[number] = outcome

    engine.serve(dict(enumerate(requests)), dict, answered)
    return [rankings[number] for number in range(len(requests))]


@runtime_checkable
class ContinuousEngine(Engine, Protocol):
    """An engine that takes further requests while it works on others."""

    def submit(self, requests: Mapping[Any, RankRequest], answered: Answered) -> None:
        """Take requests, under keys of the caller's. Raises nothing.

        answered: called with each key once, on any thread, and with all that are done at the same time together.
        """
        ...
