"""The engine in a process of its own, supervised: when it dies or hangs, what it has in hand fails, and a new one is
started.

The new process is forked from a template that has imported everything and never computed (a fork cannot use
the threads of a parent that has), so that a restart costs no more than opening the bundle.
"""

from __future__ import annotations

import atexit
import logging
import threading
import time
from collections.abc import Callable, Hashable, Mapping, Sequence
from contextlib import suppress
from functools import partial
from multiprocessing.connection import wait
from typing import Any
from weakref import WeakKeyDictionary

from index.bundle.bundle import Bundle
from index.bundle.item_index import ItemIndex
from index.trie.allowed import Allowed, SlotSet
from index.trie.trie import Trie
from server.engine.contract import Answered, EngineError, EngineLostError, Outcome, Ranking, RankRequest
from server.engine.process.child import Asked, Child
from server.engine.process.wire import WireRequest
from server.engine.torch_backend.engine import DEFAULTS, EngineOptions

logger = logging.getLogger("server.engine.process.engine_process")

LONGEST_PAUSE = 10.0  # seconds between two attempts to start
STABLE_SECONDS = 1.0  # a worker that has lived so long is replaced at once when it dies


class EngineProcess:
    """A `ContinuousEngine` whose work is done elsewhere. `start` it before use; any thread may use it.

    stall_seconds: without any answer, while requests are in hand, after which it counts as hung.
    on_restart: called, on a thread of this object's own, whenever a new process replaces a lost one.
    """

    def __init__(
        self,
        bundle: Bundle,
        *,
        options: EngineOptions = DEFAULTS,
        log_level: str = "info",
        stall_seconds: float = 60.0,
    ) -> None:
        self.on_restart: Callable[[], None] = lambda: None
        self._path = bundle.path.resolve()
        self._options = (options, log_level, bundle.info.bundle_id)
        self._stall_seconds = stall_seconds
        self._versions: WeakKeyDictionary[Trie, tuple[str, SlotSet | None]] = WeakKeyDictionary()
        self._know(bundle.index)
        self._warm_up: Sequence[RankRequest] = ()
        self._changing = threading.Lock()  # of `_child`, together with `_running`
        self._child: Child | None = None
        self._running = threading.Event()
        self._down_since = time.monotonic()
        self._closing = threading.Event()

    @property
    def everything(self) -> Allowed:
        """Every item of the index version taken up last, but for removed ones."""
        return self._everything

    @property
    def running(self) -> bool:
        """Whether requests would be ranked now."""
        return self._running.is_set()

    @property
    def down_seconds(self) -> float:
        """For how long it has not been running."""
        return 0.0 if self.running else time.monotonic() - self._down_since

    @property
    def pid(self) -> int | None:
        child = self._child
        return child.process.pid if child is not None else None

    def start(self, warm_up: Sequence[RankRequest] = ()) -> None:
        """Start the process and rank `warm_up`, here and after every restart. Raises `EngineError`."""
        self._warm_up = warm_up
        self._install(self._spawn())
        atexit.register(self.close)  # before multiprocessing's own exit, which would wait for the process
        logger.info("the engine is there", extra={"pid": self.pid})
        threading.Thread(target=self._supervise, name="engine-supervisor", daemon=True).start()

    def wait_running(self, timeout: float) -> bool:
        return self._running.wait(timeout)

    def close(self) -> None:
        """End the process. What it has in hand fails with `EngineLostError`."""
        self._closing.set()
        atexit.unregister(self.close)
        with self._changing:
            self._running.clear()
            if self._child is not None:
                self._child.kill()
                self._child.process.join()

    def rank(self, requests: Sequence[RankRequest]) -> list[Ranking]:
        """See `Engine.rank`. Raises `EngineLostError` for requests that were lost, `EngineError` for those that
        failed."""
        return _answers(self.submit, requests)

    def submit(self, requests: Mapping[Any, RankRequest], answered: Answered) -> None:
        """See `ContinuousEngine.submit`. Waits while a process that is stopped reads nothing."""
        child = self._child
        if not self.running or child is None:
            answered(dict.fromkeys(requests, EngineLostError("the engine is being restarted")))
        else:
            self._submit_to(child, requests, answered)

    def prepare(self, index: ItemIndex) -> None:
        """Take up a version of the bundle's index: requests may name it from now on. Raises `EngineError`.

        If there is no process, the next one starts with this version; the one before may be gone from the disk.
        """
        child = self._child
        if self.running and child is not None:
            with suppress(EngineLostError):
                child.open(index.version)
        self._know(index)

    def _know(self, index: ItemIndex) -> None:
        self._version = index.version
        self._everything = Allowed.of(index.trie, index.living)
        self._versions[index.trie] = (index.version, index.living)

    def _submit_to(self, child: Child, requests: Mapping[Any, RankRequest], answered: Answered) -> None:
        asked: dict[Hashable, Asked] = {}
        refused: dict[Hashable, Outcome] = {}
        for key, request in requests.items():
            try:
                asked[key] = Asked(self._wired(request), request.gone)
            except EngineError as error:
                refused[key] = error
        if refused:
            answered(refused)
        if asked:
            child.submit(asked, answered)

    def _wired(self, request: RankRequest) -> WireRequest:
        allowed = request.allowed or self.everything
        try:
            version, living = self._versions[allowed.trie]
        except KeyError:
            raise EngineError("the request is of an index version that the engine did not take up") from None
        return WireRequest.of(request, allowed, version, living)

    def _lose(self, child: Child) -> None:
        """Nothing more is sent to this one; the supervisor, who waits for its end, starts the next."""
        with self._changing:
            if self._child is child and self._running.is_set():
                self._running.clear()
                self._down_since = time.monotonic()
        child.kill()

    def _install(self, child: Child) -> None:
        with self._changing:
            self._child = child
            if self._closing.is_set():
                child.kill()
            else:
                self._running.set()

    def _supervise(self) -> None:
        pause = 0.0
        while True:
            child = self._child
            assert child is not None  # `start` has installed the first
            wait([child.process.sentinel])
            self._lose(child)
            child.process.join()
            if self._closing.is_set():
                return
            logger.error(
                "the engine's process ended; starting another", extra={"code": child.process.exitcode}
            )
            if time.monotonic() - child.started > STABLE_SECONDS:
                pause = 0.0
            while True:
                if self._closing.wait(pause):
                    return
                pause = min(2 * pause or 0.25, LONGEST_PAUSE)
                try:
                    fresh = self._spawn()
                    break
                except (
                    Exception
                ) as error:  # whatever it is, without an engine there is nothing but to try again
                    logger.error("the engine does not start", extra={"reason": str(error)[:500]})
            self.on_restart()
            self._install(fresh)
            logger.info("the engine is back", extra={"pid": fresh.process.pid})

    def _spawn(self) -> Child:
        """A process that has opened the bundle and ranked the warm-up. Raises `EngineError`."""
        child = Child(self._path, self._version, *self._options, self._lose)
        try:
            _answers(partial(self._submit_to, child), self._warm_up)
        except EngineLostError as error:
            raise EngineError("the engine's process ended, or took too long, before it was ready") from error
        except EngineError:
            child.kill()
            raise
        child.stall_seconds = self._stall_seconds
        return child


def _answers(
    submit: Callable[[Mapping[Any, RankRequest], Answered], None], requests: Sequence[RankRequest]
) -> list[Ranking]:
    """Wait for all answers. Raises the first failure."""
    outcomes: dict[Hashable, Outcome] = {}
    done = threading.Event()

    def answered(some: Mapping[Hashable, Outcome]) -> None:
        outcomes.update(some)
        if len(outcomes) == len(requests):
            done.set()

    if requests:
        submit(dict(enumerate(requests)), answered)
        done.wait()
    rankings: list[Ranking] = []
    for number in range(len(requests)):
        outcome = outcomes[number]
        if isinstance(outcome, Exception):
            raise outcome
        rankings.append(outcome)
    return rankings
