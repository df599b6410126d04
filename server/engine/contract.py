"""The contract of ranking engines: exact constrained beam search, a batch at a time or continuously.

    Engine            rank(requests) → rankings                          evaluation, benchmarks
    StepwiseEngine    takes further requests between two of its steps    both back ends
    HostedEngine      start, submit, prepare, running, close             the server's scheduler and deployments

A `HostedEngine` is either `EngineProcess`, which runs a back end in a process of its own, or `InProcess`, which wraps
an `Engine` of the same process.
"""

from __future__ import annotations

import math
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, Protocol

from index.bundle.item_index import ItemIndex
from index.sequence.events import Task
from index.trie.allowed import Allowed

ENGINE_STAGES = ("prefill", "decode", "head", "trie")  # in the order of time


class EngineError(Exception):
    """The engine cannot rank; the message says what is wrong with the request or the bundle."""


class EngineLostError(EngineError):
    """The engine's process died or hung while it had this request, or there is no process at the moment."""


class EngineBrokenError(EngineError):
    """A back end failed in a way that it does not recover from; its process has to end."""


def _never() -> bool:
    return False


@dataclass(frozen=True, slots=True)
class RankRequest:
    """One prompt to be continued by item identifiers.

    prompt: token ids, as `SequenceEncoder.prompt` makes them.
    limit: number of items to return at most.
    beam_width: hypotheses kept per level; raised to `limit` where it is smaller.
    allowed: items that may be returned, of one index version, under the identifiers of the request's task; None for
        `Engine.everything`.
    shared_tokens: tokens at the start of the prompt that later requests may share and the prefix cache should keep;
        None for the whole prompt, 0 for none.
    siblings: number of items that may be returned beyond `limit`: those that share the identifiers of the best `limit`
        hypotheses.
    pool: catalogue rows, each once, to be scored exactly besides the beam. They need not be allowed, and the beam and
        the items that it returns do not depend on them.
    levels: number of codes of an identifier that are written and scored, the first ones; None for all. The beam ends
        there, and items below the same node share its score.
    state: whether the hidden state at the end of the prompt is wanted.
    deadline: time on the clock of `time.monotonic` after which nobody waits for the answer.
    cancelled: tells whether nobody waits any more; called on any thread while the engine computes.
    Raises `EngineError` if the prompt is empty, a number too small, or the pool names an item twice.
    """

    prompt: Sequence[int]
    limit: int
    beam_width: int
    allowed: Allowed | None = None
    shared_tokens: int | None = None
    siblings: int = 0
    pool: Sequence[int] = ()
    levels: int | None = None
    state: bool = False
    deadline: float = math.inf
    cancelled: Callable[[], bool] = field(default=_never, compare=False)

    def __post_init__(self) -> None:
        if not self.prompt:
            raise EngineError("the prompt holds no token")
        if self.limit < 1 or self.beam_width < 1:
            raise EngineError(
                f"limit and beam_width must be at least 1, got {self.limit} and {self.beam_width}"
            )
        if self.siblings < 0:
            raise EngineError(f"siblings must be at least 0, got {self.siblings}")
        if self.levels is not None and self.levels < 1:
            raise EngineError(f"levels must be at least 1, got {self.levels}; None writes whole identifiers")
        if len(set(self.pool)) < len(self.pool):
            raise EngineError("the pool names an item more than once; each needs to be there once")

    @property
    def width(self) -> int:
        """Hypotheses kept per level."""
        return max(self.beam_width, self.limit)

    def written(self, levels: int) -> int:
        """Return how many codes of an identifier are written. levels: L, the number of its codes."""
        return levels if self.levels is None else self.levels

    def positions(self, levels: int) -> int:
        """Return how many positions its prompt, beams and pool take at most. levels: as in `written`."""
        return len(self.prompt) + (self.width + len(self.pool)) * (self.written(levels) - 1)

    @property
    def expired(self) -> bool:
        """Whether nobody waits for the answer any more."""
        return self.deadline < time.monotonic() or self.cancelled()

    def check_fits(self, allowed: Allowed, levels: int, positions: int) -> None:
        """Raise `EngineError` if the request fits neither the identifiers nor the context of the model.

        allowed: items that may be returned.
        levels: codes of an identifier that the model writes.
        positions: length of the model's context, in tokens.
        """
        trie = allowed.trie
        if trie.levels != levels:
            raise EngineError(f"identifiers of {levels} codes are needed")
        written = self.written(levels)
        if written > levels:
            raise EngineError(f"levels must be at most {levels}, the codes of an identifier, got {written}")
        if len(self.prompt) + written > positions:
            raise EngineError(
                f"a prompt of {len(self.prompt)} tokens leaves no room for {written} codes in a context "
                f"of {positions} positions"
            )
        if self.pool and not 0 <= min(self.pool) <= max(self.pool) < trie.items:
            raise EngineError(
                f"the pool names rows from {min(self.pool)} to {max(self.pool)}; the rows of this index version "
                f"are 0 to {trie.items - 1}"
            )


@dataclass(frozen=True, slots=True)
class Ranking:
    """The answer to one request. Items that share one identifier share its score.

    items: catalogue rows, best first.
    scores: natural logarithms: of the identifiers' probabilities, or of the items' shares of all interactions where
        popularity answers.
    seconds: time spent in each stage of `ENGINE_STAGES`, counted by the steps that the request took part in. The
        scheduler adds `queue`, the service `tokenise` and `explain`.
    cached_tokens: tokens of the prompt that came from the prefix cache.
    expired: whether the request was dropped because nobody waited any more; there are no items and no scores then.
    pool_scores: log p(first `levels` codes | prompt) of each item of `RankRequest.pool`, in its order; what a beam wide
        enough to hold the item would give it.
    state: hidden state that the first code is predicted from, [d]; empty if it was not wanted, or the back end cannot
        give it.
    """

    items: list[int]
    scores: list[float]
    seconds: dict[str, float] = field(default_factory=dict)
    cached_tokens: int = 0
    expired: bool = False
    pool_scores: list[float] = field(default_factory=list)
    state: list[float] = field(default_factory=list)


Outcome = Ranking | Exception  # a ranking, or the reason why there is none
OnDone = Callable[[Mapping[Any, Outcome]], None]  # receives the outcomes of requests, by the caller's keys


class Engine(Protocol):
    """Exact constrained beam search: the best `limit` allowed items under a beam of `beam_width`."""

    @property
    def everything(self) -> Allowed:
        """All items of the index version in use, without removed ones: `everything_for` a recommendation."""
        ...

    def everything_for(self, task: Task) -> Allowed:
        """Return all items, without removed ones, under the identifiers that a task writes."""
        ...

    def rank(self, requests: Sequence[RankRequest]) -> list[Ranking]:
        """Rank a batch. The answer to a request does not depend on its neighbours. Raises `EngineError`."""
        ...

    def forget(self) -> None:
        """Drop what is kept of earlier prompts. Raises `EngineError`."""
        ...


class StepwiseEngine(Engine, Protocol):
    """An engine that takes further requests between two of its steps, on the thread that computes."""

    def serve(
        self,
        requests: Mapping[int, RankRequest],
        arrivals: Callable[[], Mapping[int, RankRequest]],
        on_done: Callable[[Mapping[int, Outcome]], None],
    ) -> None:
        """Rank requests and those that arrive meanwhile, until none is in flight and none arrives.

        requests: by numbers of the caller's choice.
        arrivals: called before each step; returns new requests, whose numbers differ from all in flight.
        on_done: called with outcomes as soon as they are known. A request that cannot begin fails alone; a step that
            fails, fails all requests that took part in it.
        Raises what `arrivals` and `on_done` raise, and `EngineBrokenError`.
        """
        ...


class HostedEngine(Engine, Protocol):
    """An engine with a life of its own, as the scheduler uses it. Any thread may use it.

    on_restart: called whenever a lost engine was replaced.
    """

    on_restart: Callable[[], None]

    @property
    def running(self) -> bool:
        """Whether requests would be ranked now."""
        ...

    @property
    def down_seconds(self) -> float:
        """Seconds since it stopped running; 0 while it runs."""
        ...

    @property
    def pid(self) -> int | None:
        """Id of the engine's process; None where it has none of its own."""
        ...

    def start(self, warm_up: Sequence[RankRequest] = ()) -> None:
        """Make the engine ready and rank `warm_up`. Raises `EngineError`."""
        ...

    def submit(self, requests: Mapping[Any, RankRequest], on_done: OnDone) -> None:
        """Take requests, by keys of the caller's choice. May block, and raises nothing.

        on_done: called with each key once, on any thread; outcomes of the same moment come together.
        """
        ...

    def prepare(self, index: ItemIndex) -> None:
        """Open a version of the bundle's index: requests may use it from now on. Raises `EngineError`."""
        ...

    def close(self) -> None:
        """End the engine, unless the caller owns it. Requests in flight fail with `EngineLostError`."""
        ...
