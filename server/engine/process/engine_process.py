"""The engine in a process of its own, supervised: if it dies or hangs, its requests fail and another is started.

The new process is forked from a template that has imported everything and never computed (a fork cannot use
the threads of a parent that has), so that a restart costs no more than opening the bundle.
"""

from __future__ import annotations

import atexit
import logging
import signal
import threading
import time
from collections.abc import Callable, Mapping, Sequence
from contextlib import suppress
from functools import partial
from typing import Any
from weakref import WeakKeyDictionary

from index.bundle.bundle import Bundle
from index.bundle.item_index import ItemIndex
from index.sequence.events import Task
from index.trie.allowed import Allowed, SlotSet
from index.trie.trie import Trie
from server.engine.contract import EngineError, EngineLostError, OnDone, Outcome, Ranking, RankRequest
from server.engine.options import DEFAULTS, EngineOptions
from server.engine.process import template
from server.engine.process.child import Child
from server.engine.process.wire import WireRequest
from server.engine.waiting import rank_by_submitting, warmed_up

logger = logging.getLogger("server.engine.process.engine_process")

LONGEST_PAUSE = 10.0  # seconds between two attempts to start
TEMPLATE_SECONDS = 1.0  # between two looks whether the template is there


class EngineProcess:
    """A `HostedEngine` whose work is done by another process. `start` it before use; any thread may use it.

    stall_seconds: seconds without any reply, while requests are in flight, after which the process counts as hung.
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
        self._versions: WeakKeyDictionary[Trie, tuple[str, int, SlotSet | None]] = WeakKeyDictionary()
        self._know(bundle.index)
        self._warm_up: Sequence[RankRequest] = ()
        self._changing = threading.Lock()  # guards `_child` together with `_running`
        self._child: Child | None = None
        self._running = threading.Event()
        self._down_since = time.monotonic()
        self._closing = threading.Event()

    @property
    def everything(self) -> Allowed:
        """All items of the index version that was prepared last, without removed ones."""
        return self._everything[Task.RECOMMENDATION]

    def everything_for(self, task: Task) -> Allowed:
        """Return all living items under the identifiers of a task; see `Engine.everything_for`."""
        return self._everything[task]

    @property
    def running(self) -> bool:
        """Whether requests would be ranked now."""
        return self._running.is_set()

    @property
    def down_seconds(self) -> float:
        """Seconds since it stopped running; 0 while it runs."""
        return 0.0 if self.running else time.monotonic() - self._down_since

    @property
    def pid(self) -> int | None:
        """Id of the process; None before the first one is started."""
        child = self._child
        return child.process.pid if child is not None else None

    def start(self, warm_up: Sequence[RankRequest] = ()) -> None:
        """Start the process and rank `warm_up`, here and after every restart. Raises `EngineError`."""
        self._warm_up = warm_up
        self._install(self._spawn())
        # Runs before multiprocessing's own exit, which would wait for the process.
        atexit.register(self.close)
        logger.info("the engine is ready", extra={"pid": self.pid})
        threading.Thread(target=self._supervise, name="engine-supervisor", daemon=True).start()

    def wait_running(self, timeout: float) -> bool:
        """Wait until it runs, for `timeout` seconds at most. Returns whether it does."""
        return self._running.wait(timeout)

    def close(self) -> None:
        """End the process. Requests in flight fail with `EngineLostError`."""
        self._closing.set()
        atexit.unregister(self.close)
        with self._changing:
            self._running.clear()
            if self._child is not None:
                self._child.kill()
                self._child.join()

    def rank(self, requests: Sequence[RankRequest]) -> list[Ranking]:
        """Rank a batch; see `Engine.rank`.

        Raises `EngineLostError` if requests were lost, `EngineError` if they failed.
        """
        return rank_by_submitting(self.submit, requests)

    def submit(self, requests: Mapping[Any, RankRequest], on_done: OnDone) -> None:
        """Take requests; see `HostedEngine.submit`. Blocks while the process reads nothing."""
        child = self._child
        if not self.running or child is None:
            on_done(dict.fromkeys(requests, EngineLostError("the engine is being restarted")))
        else:
            self._submit_to(child, requests, on_done)

    def prepare(self, index: ItemIndex) -> None:
        """Open a version of the bundle's index: requests may use it from now on. Raises `EngineError`.

        If there is no process, the next one starts with this version: the one before may have left the disk.
        """
        child = self._child
        if self.running and child is not None:
            with suppress(EngineLostError):
                child.open(index.version)
        self._know(index)

    def forget(self) -> None:
        """Drop what the process keeps of earlier prompts; a lost one has dropped it. Raises `EngineError`."""
        child = self._child
        if child is not None:
            with suppress(EngineLostError):
                child.forget()

    def _know(self, index: ItemIndex) -> None:
        # not the index itself: texts of a version that was replaced would stay in memory until the next one
        self._version = index.version
        self._everything = {task: index.named(task).everything for task in Task}
        for kind, names in enumerate(index.every_names):
            self._versions[names.trie] = (index.version, kind, names.living)

    def _submit_to(self, child: Child, requests: Mapping[Any, RankRequest], on_done: OnDone) -> None:
        wired: dict[Any, tuple[RankRequest, WireRequest]] = {}
        refused: dict[Any, Outcome] = {}
        for key, request in requests.items():
            try:
                wired[key] = request, self._wired(request)
            except EngineError as error:
                refused[key] = error
        if refused:
            on_done(refused)
        if wired:
            child.submit(wired, on_done)

    def _wired(self, request: RankRequest) -> WireRequest:
        allowed = request.allowed or self.everything
        try:
            known = self._versions[allowed.trie]
        except KeyError:
            raise EngineError("the request is of an index version that the engine has not opened") from None
        return WireRequest.of(request, allowed, *known)

    def _lose(self, child: Child) -> None:
        """Stop using a process; the supervisor, which waits for its end, starts the next one."""
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
        while True:
            child = self._child
            assert child is not None  # `start` has installed the first
            while not child.ended(TEMPLATE_SECONDS):
                template.begin()  # does nothing unless it was lost; the next engine need not wait for its imports
            self._lose(child)
            if self._closing.is_set():
                return
            logger.error("the engine's process ended; starting another", extra=_how(child.join()))
            fresh = self._replacement()
            if fresh is None:
                return
            self.on_restart()
            self._install(fresh)
            logger.info("the engine is back", extra={"pid": fresh.process.pid})

    def _replacement(self) -> Child | None:
        """Start a process, again and again until one starts; None if this object is closed before."""
        pause = 0.0
        while not self._closing.wait(pause):
            try:
                return self._spawn()
            # Whatever it is: without an engine nothing is left but to try again.
            except Exception as error:
                logger.error("the engine does not start", extra={"reason": str(error)[:500]})
            pause = min(2 * pause or 0.25, LONGEST_PAUSE)
        return None

    def _spawn(self) -> Child:
        """Start a process that has opened the bundle and ranked the warm-up. Raises `EngineError`."""
        child = Child(self._path, self._version, *self._options, self._lose)
        try:
            warmed_up(rank_by_submitting(partial(self._submit_to, child), self._warm_up))
        except EngineLostError as error:
            raise EngineError("the engine's process ended, or took too long, before it was ready") from error
        except EngineError:
            child.kill()
            raise
        child.stall_seconds = self._stall_seconds
        return child


def _how(code: int | None) -> dict[str, object]:
    """Return the fields of the log line about a process that ended."""
    if code is None or code >= 0:
        return {"code": code}
    name = signal.Signals(-code).name
    reason = {"reason": "a file that it had mapped, such as its weights, was changed in place"}
    return {"code": code, "signal": name} | (reason if name == "SIGBUS" else {})
