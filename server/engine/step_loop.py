"""The loop of a stepwise engine, which both back ends share: begin what has room, step, report what is done.

while requests are waiting or in flight:
    take arrivals → drop expired requests → begin waiting ones → one step for all → report outcomes
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Protocol, TypeVar

from index.trie.allowed import Allowed
from server.engine.beam import Beam, best_items
from server.engine.contract import EngineBrokenError, Outcome, Ranking, RankRequest


class RunningSearch(Protocol):
    """One request while it is being ranked.

    request: the request. allowed: items that it may return. level: depth that its beam has reached.
    state: hidden state at the end of the prompt, [d]; empty if it is not wanted or not known.
    seconds: time of its steps so far, by stage. cached_tokens: tokens of the prompt from the prefix cache.
    """

    request: RankRequest
    allowed: Allowed
    level: int
    beam: Beam
    state: list[float]
    seconds: dict[str, float]
    cached_tokens: int

    @property
    def done(self) -> bool:
        """Whether the beam has reached the last level that the request wants."""
        ...

    @property
    def pool_scores(self) -> list[float]:
        """Scores of the request's pool, once it is done."""
        ...


S = TypeVar("S", bound=RunningSearch)


class BackEnd(Protocol[S]):
    """The parts of the loop in which back ends differ."""

    def begin(self, request: RankRequest, running: Sequence[S]) -> S | None:
        """Return a search for a request; None if it has to wait for others. Any exception fails this request."""
        ...

    def step(self, searches: Sequence[S]) -> None:
        """Advance the searches. An exception fails all of them; `EngineBrokenError` ends the loop."""
        ...

    def abandon(self, searches: Sequence[S]) -> None:
        """Release what unfinished searches hold."""
        ...

    def after_step(self, outcomes: dict[int, Outcome]) -> None:
        """Look at the outcomes before they are reported; may replace errors."""
        ...


def serve_in_steps(
    back_end: BackEnd[S],
    requests: Mapping[int, RankRequest],
    arrivals: Callable[[], Mapping[int, RankRequest]],
    on_done: Callable[[Mapping[int, Outcome]], None],
) -> None:
    """Rank requests and their followers; see `StepwiseEngine.serve`."""
    waiting = dict(requests)
    running: dict[int, S] = {}
    try:
        while True:
            waiting |= arrivals()
            if not waiting and not running:
                return
            outcomes = _drop_expired(back_end, waiting, running)
            outcomes |= _begin_waiting(back_end, waiting, running)
            try:
                if running:
                    back_end.step(list(running.values()))
                outcomes |= _take_done(running)
            except EngineBrokenError:
                raise
            except Exception as error:  # whatever it is, only requests that took part in the step fail
                back_end.abandon(list(running.values()))
                outcomes |= dict.fromkeys(running, error)
                running.clear()
            back_end.after_step(outcomes)
            if outcomes:
                on_done(outcomes)
    finally:
        back_end.abandon(list(running.values()))


def _drop_expired(
    back_end: BackEnd[S], waiting: dict[int, RankRequest], running: dict[int, S]
) -> dict[int, Outcome]:
    """Remove the requests for which nobody waits any more."""
    outcomes: dict[int, Outcome] = {}
    for number in [number for number, request in waiting.items() if request.expired]:
        del waiting[number]
        outcomes[number] = Ranking([], [], expired=True)
    for number in [number for number, search in running.items() if search.request.expired]:
        search = running.pop(number)
        back_end.abandon([search])
        outcomes[number] = Ranking([], [], search.seconds, search.cached_tokens, expired=True)
    return outcomes


def _begin_waiting(
    back_end: BackEnd[S], waiting: dict[int, RankRequest], running: dict[int, S]
) -> dict[int, Outcome]:
    """Move requests from `waiting` to `running` in order of arrival, until one has to wait. Returns failures."""
    failed: dict[int, Outcome] = {}
    for number, request in list(waiting.items()):
        try:
            search = back_end.begin(request, list(running.values()))
        except Exception as error:
            del waiting[number]
            failed[number] = error
            continue
        if search is None:
            break
        del waiting[number]
        running[number] = search
    return failed


def _take_done(running: dict[int, S]) -> dict[int, Outcome]:
    """Remove the searches that are done. Returns their rankings."""
    rankings: dict[int, Outcome] = {}
    for number, search in running.items():
        if search.done:
            request = search.request
            items, scores = best_items(
                search.level, search.beam, search.allowed, request.limit, request.siblings
            )
            rankings[number] = Ranking(
                items,
                scores,
                search.seconds,
                search.cached_tokens,
                pool_scores=search.pool_scores,
                state=search.state,
            )
    for number in rankings:
        del running[number]
    return rankings
