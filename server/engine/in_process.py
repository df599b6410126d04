"""An engine of the server's own process, with the life cycle of a hosted one."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any

from index.bundle.item_index import ItemIndex
from index.sequence.events import Task
from index.trie.allowed import Allowed
from server.engine.contract import Engine, OnDone, Outcome, Ranking, RankRequest
from server.engine.waiting import warmed_up


class InProcess:
    """A `HostedEngine` around an `Engine`: ranks batch after batch, on the thread that submits."""

    running = True
    down_seconds = 0.0
    pid = None

    def __init__(self, engine: Engine) -> None:
        self.on_restart: Callable[[], None] = lambda: None  # never called: there is nothing to restart
        self._engine = engine

    @property
    def everything(self) -> Allowed:
        """All items of the index that the engine was opened with, without removed ones."""
        return self._engine.everything

    def everything_for(self, task: Task) -> Allowed:
        """Return what the engine says; see `Engine`."""
        return self._engine.everything_for(task)

    def start(self, warm_up: Sequence[RankRequest] = ()) -> None:
        """Rank `warm_up`. Raises what the engine raises, and `EngineError` for scores that are not finite."""
        if warm_up:
            warmed_up(self._engine.rank(warm_up))

    def rank(self, requests: Sequence[RankRequest]) -> list[Ranking]:
        """Rank a batch; see `Engine.rank`."""
        return self._engine.rank(requests)

    def submit(self, requests: Mapping[Any, RankRequest], on_done: OnDone) -> None:
        """Rank the requests before this returns; see `HostedEngine.submit`."""
        outcomes: Mapping[Any, Outcome]
        try:
            outcomes = dict(zip(requests, self._engine.rank(list(requests.values())), strict=True))
        except Exception as error:  # whatever it is, only these requests fail
            outcomes = dict.fromkeys(requests, error)
        on_done(outcomes)

    def prepare(self, index: ItemIndex) -> None:
        """Do nothing: each request brings the trie of its index version."""

    def forget(self) -> None:
        """Drop what the engine keeps of earlier prompts."""
        self._engine.forget()

    def close(self) -> None:
        """Do nothing: the caller owns the engine."""
