"""One engine process, seen from the server: its pipe, what it has in hand, and how long it may take."""

from __future__ import annotations

import ctypes
import threading
import time
from collections import deque
from collections.abc import Callable, Hashable, Iterator, Mapping
from concurrent.futures import Future
from contextlib import contextmanager
from dataclasses import dataclass
from itertools import count
from multiprocessing.context import ForkServerProcess
from pathlib import Path

from server.engine.contract import Answered, EngineError, EngineLostError, Outcome
from server.engine.process import worker
from server.engine.process.template import CONTEXT
from server.engine.process.wire import (
    Answers,
    Command,
    Failure,
    Open,
    Rank,
    Reply,
    WireRequest,
    decode_reply,
    encode,
)
from server.engine.torch_backend.engine import EngineOptions

START_SECONDS = 600.0  # for a worker to open its bundle, and again to warm up
WATCHED = 1024  # requests in hand that can be given up; what exceeds them is computed to the end
WATCH_SECONDS = 0.05  # between two looks whether somebody still waits


@dataclass(frozen=True, slots=True)
class Asked:
    """A request on its way. gone: whether nobody waits for it any more; the worker then leaves it."""

    request: WireRequest
    gone: Callable[[], bool]


@dataclass(frozen=True, slots=True)
class _InHand:
    key: Hashable
    gone: Callable[[], bool]
    answered: Answered


class Child:
    """Forked from the template; it has opened the bundle. Any thread may use it, and a thread of its own reads what it
    answers.

    version: of the index. bundle_id: what the bundle at `path` has to be. lost: called with this object, before anybody
    else learns of it, when the process has ended, or was killed because it gave no answer for `stall_seconds` while it
    had something to do. Raises `EngineError` if it does not start.
    """

    def __init__(
        self,
        path: Path,
        version: str,
        options: EngineOptions,
        log_level: str,
        bundle_id: str,
        lost: Callable[[Child], None],
    ) -> None:
        self.stall_seconds = START_SECONDS
        self._lost = lost
        self._connection, theirs = CONTEXT.Pipe()
        self._given_up: ctypes.Array[ctypes.c_bool] = CONTEXT.RawArray(ctypes.c_bool, WATCHED)
        self._sending = threading.Lock()
        self._changed = threading.Condition()  # of what follows
        self._in_hand: dict[int, _InHand] = {}  # by the numbers that the worker knows
        self._opening: deque[Future[None]] = deque()
        self._latest = 0.0  # when it answered last, or was given something to do (`monotonic`)
        self._killed = False
        self._end: EngineLostError | None = None
        self.process: ForkServerProcess = CONTEXT.Process(
            target=worker.run,
            args=(theirs, self._given_up, path, version, options, log_level, bundle_id),
            name="gems-engine",
            daemon=True,
        )
        self.process.start()
        theirs.close()
        self._started()
        self.started = time.monotonic()
        threading.Thread(target=self._receive, name="engine-answers", daemon=True).start()

    def submit(self, requests: Mapping[Hashable, Asked], answered: Answered) -> None:
        """See `ContinuousEngine.submit`."""
        wired: dict[int, WireRequest] = {}
        with self._changed:
            end = self._end
            if end is None:
                self._busy()
                for key, asked in requests.items():
                    number = self._number()
                    if number < WATCHED:
                        self._given_up[number] = False
                    self._in_hand[number] = _InHand(key, asked.gone, answered)
                    wired[number] = asked.request
        if end is not None:
            answered(dict.fromkeys(requests, end))
        else:
            self._send(Rank(requests=wired))

    def open(self, version: str) -> None:
        """Open a version of the index. Raises `EngineError`."""
        opened: Future[None] = Future()
        with self._changed:
            if self._end is not None:
                raise self._end
            self._busy()
            self._opening.append(opened)
        self._send(Open(version=version))
        opened.result()

    def kill(self) -> None:
        """What it has in hand fails with `EngineLostError`."""
        self.process.kill()
        with self._changed:
            self._killed = True
            self._changed.notify()

    def _number(self) -> int:
        return next(number for number in count() if number not in self._in_hand)

    def _busy(self) -> None:
        if not self._in_hand and not self._opening:
            self._latest = time.monotonic()
        self._changed.notify()

    def _send(self, command: Command) -> None:
        """A process that is stopped reads nothing: this waits until it goes on, or is killed because it gives no
        answer."""
        with self._sending:
            try:
                self._connection.send_bytes(encode(command))
            except OSError:
                self.kill()

    def _receive(self) -> None:
        """Hand on what is answered, until the process ends."""
        try:
            while True:
                self._wait()
                with self._killed_after(self.stall_seconds):
                    reply = decode_reply(self._connection.recv_bytes())
                self._hand_on(reply)
        except TimeoutError as error:
            end = EngineLostError(str(error))
        except (EOFError, OSError):
            end = EngineLostError("the engine's process ended while it had this request")
        except ValueError as error:
            end = EngineLostError(f"the engine's answer cannot be read: {str(error)[:200]}")
        self.process.kill()
        self._lost(self)
        with self._changed:
            self._end = end
            in_hand, opening = list(self._in_hand), list(self._opening)
        self._settle(dict.fromkeys(in_hand, end))
        for opened in opening:
            opened.set_exception(end)

    def _wait(self) -> None:
        """Until there is something to read. Meanwhile the worker is told who is not waited for any more."""
        with self._changed:
            while not self._in_hand and not self._opening and not self._killed:
                self._changed.wait()
        while not self._connection.poll(WATCH_SECONDS):
            if time.monotonic() > self._latest + self.stall_seconds:
                raise TimeoutError(f"the engine did not answer within {self.stall_seconds:g} s")
            with self._changed:
                watched = [(number, each.gone) for number, each in self._in_hand.items() if number < WATCHED]
            for number, gone in watched:
                self._given_up[number] = gone()

    def _hand_on(self, reply: Reply) -> None:
        self._latest = time.monotonic()
        if isinstance(reply, Answers):
            failures = {number: EngineError(reason) for number, reason in reply.failures.items()}
            self._settle({**reply.rankings, **failures})
            return
        with self._changed:
            opened = self._opening.popleft()
        if isinstance(reply, Failure):
            opened.set_exception(EngineError(reply.reason))
        else:
            opened.set_result(None)

    def _settle(self, outcomes: Mapping[int, Outcome]) -> None:
        """Tell those who asked, each of them all at once."""
        told: dict[Answered, dict[Hashable, Outcome]] = {}
        with self._changed:
            for number, outcome in outcomes.items():
                each = self._in_hand.pop(number)
                told.setdefault(each.answered, {})[each.key] = outcome
        for answered, theirs in told.items():
            answered(theirs)

    def _started(self) -> None:
        """Wait for the worker's word that it has opened everything."""
        try:
            with self._killed_after(START_SECONDS):
                reply = decode_reply(self._connection.recv_bytes())
        except (EOFError, OSError) as error:  # a timeout is an OSError
            self.process.kill()
            raise EngineError("the engine's process ended, or took too long, before it was ready") from error
        if isinstance(reply, Failure):
            self.process.kill()
            raise EngineError(reply.reason)

    @contextmanager
    def _killed_after(self, seconds: float) -> Iterator[None]:
        """Raise `TimeoutError` if the block takes longer. A process that is stopped in the middle of a message keeps
        whoever reads it waiting: only its end frees them."""
        late = threading.Event()

        def kill() -> None:
            late.set()
            self.process.kill()

        timer = threading.Timer(seconds, kill)
        timer.daemon = True
        timer.start()
        try:
            yield
        except (EOFError, OSError) as error:
            if late.is_set():
                raise TimeoutError(f"the engine did not answer within {seconds:g} s") from error
            raise
        finally:
            timer.cancel()
