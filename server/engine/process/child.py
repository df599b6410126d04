"""One engine process, seen from the server: its pipe, its requests in flight, and how long it may take."""

from __future__ import annotations

import ctypes
import os
import signal
import threading
import time
from collections import deque
from collections.abc import Callable, Iterator, Mapping
from concurrent.futures import Future
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from itertools import count
from multiprocessing.context import ForkServerProcess
from pathlib import Path
from typing import Any

from server.engine.contract import EngineError, EngineLostError, OnDone, Outcome, RankRequest
from server.engine.options import EngineOptions
from server.engine.process import entry
from server.engine.process.template import CONTEXT
from server.engine.process.wire import (
    Command,
    Failure,
    ForgetCommand,
    OpenCommand,
    Outcomes,
    RankCommand,
    Reply,
    WireRequest,
    decode_reply,
    encode,
)

START_SECONDS = 600.0  # for a worker to open its bundle, and again to warm up
UNKNOWN_EXIT = 255  # what multiprocessing says of a process whose template was lost
WATCHED = 1024  # requests in flight that can be cancelled; those beyond are computed to the end
WATCH_SECONDS = 0.05  # between two looks for cancelled requests


@dataclass(frozen=True, slots=True)
class _InFlight:
    """A request that the worker has. key: the caller's; on_done: receives its outcome."""

    key: Any
    request: RankRequest
    on_done: OnDone


class Child:
    """A process that was forked from the template and has opened the bundle. Any thread may use this object.

    A thread of its own reads the replies.

    path: of the bundle.
    version: of the index that is opened first.
    options, log_level: for the engine and the log of the process.
    bundle_id: id that the bundle at `path` must have.
    on_lost: called with this object, before anybody else learns of it, when the process has ended, or was killed
        because it did not reply for `stall_seconds` while it had something to do.
    Raises `EngineError` if the process does not start.
    """

    def __init__(
        self,
        path: Path,
        version: str,
        options: EngineOptions,
        log_level: str,
        bundle_id: str,
        on_lost: Callable[[Child], None],
    ) -> None:
        self.stall_seconds = START_SECONDS
        self._on_lost = on_lost
        self._connection, theirs = CONTEXT.Pipe()
        # Closed by the end of the process. The template would report it, too, but may be lost itself.
        self._lifeline, held = CONTEXT.Pipe(duplex=False)
        self._cancelled: ctypes.Array[ctypes.c_bool] = CONTEXT.RawArray(ctypes.c_bool, WATCHED)
        self._sending = threading.Lock()
        self._commanding = threading.Lock()  # commands are obeyed in the order of `_obeying`
        self._changed = threading.Condition()  # guards all that follows
        self._in_flight: dict[int, _InFlight] = {}  # by the numbers that the worker knows
        self._obeying: deque[Future[None]] = deque()
        self._latest = 0.0  # time of the latest reply, or of the first thing to do (`monotonic`)
        self._killed = False
        self._end: EngineLostError | None = None
        self.process: ForkServerProcess = CONTEXT.Process(
            target=entry.run,
            args=(theirs, held, self._cancelled, path, version, options, log_level, bundle_id),
            name="gems-engine",
            daemon=True,
        )
        self.process.start()
        self._pid = int(self.process.pid or 0)
        theirs.close()
        held.close()
        self._wait_started()
        threading.Thread(target=self._receive, name="engine-replies", daemon=True).start()

    def submit(self, requests: Mapping[Any, tuple[RankRequest, WireRequest]], on_done: OnDone) -> None:
        """Send requests, each in both of its forms, by the caller's keys; see `HostedEngine.submit`."""
        wired: dict[int, WireRequest] = {}
        with self._changed:
            end = self._end
            if end is None:
                self._busy()
                for key, (request, wire) in requests.items():
                    number = self._free_number()
                    if number < WATCHED:
                        self._cancelled[number] = False
                    self._in_flight[number] = _InFlight(key, request, on_done)
                    wired[number] = wire
        if end is not None:
            on_done(dict.fromkeys(requests, end))
        else:
            self._send(RankCommand(requests=wired))

    def open(self, version: str) -> None:
        """Have the worker open a version of the index. Raises `EngineError`."""
        self._command(OpenCommand(version=version))

    def forget(self) -> None:
        """Have the worker drop what it keeps of earlier prompts. Raises `EngineError`."""
        self._command(ForgetCommand())

    def kill(self) -> None:
        """Kill the process. Requests in flight fail with `EngineLostError`."""
        self._kill()
        with self._changed:
            self._killed = True
            self._changed.notify()

    def ended(self, timeout: float | None = None) -> bool:
        """Wait until the process has ended, for `timeout` seconds at most. Returns whether it has."""
        return self._lifeline.poll(timeout)

    def join(self) -> int | None:
        """Wait for the end. Returns the exit code, minus the signal if one ended it; None if nobody knows it."""
        self.ended()
        self.process.join()  # it has left nothing behind by now
        code = self.process.exitcode
        return None if code == UNKNOWN_EXIT else code

    def _kill(self) -> None:
        if not self.ended(0):  # otherwise another process may have its number by now
            with suppress(ProcessLookupError):
                os.kill(self._pid, signal.SIGKILL)

    def _free_number(self) -> int:
        return next(number for number in count() if number not in self._in_flight)

    def _busy(self) -> None:
        """Note that the worker has something to do from now on."""
        if not self._in_flight and not self._obeying:
            self._latest = time.monotonic()
        self._changed.notify()

    def _command(self, command: OpenCommand | ForgetCommand) -> None:
        """Send a command and wait until it is obeyed. Raises `EngineError`."""
        obeyed: Future[None] = Future()
        with self._commanding:
            with self._changed:
                if self._end is not None:
                    raise self._end
                self._busy()
                self._obeying.append(obeyed)
            self._send(command)
        obeyed.result()

    def _send(self, command: Command) -> None:
        """Send a command. Blocks while the process reads nothing: until it goes on, or is killed as stalled."""
        with self._sending:
            try:
                self._connection.send_bytes(encode(command))
            except OSError:
                self.kill()

    def _receive(self) -> None:
        """Pass on replies until the process ends."""
        try:
            while True:
                self._wait_readable()
                with self._killed_after(self.stall_seconds):
                    reply = decode_reply(self._connection.recv_bytes())
                self._pass_on(reply)
        except TimeoutError as error:
            end = EngineLostError(str(error))
        except (EOFError, OSError):
            end = EngineLostError("the engine's process ended while it had this request")
        except ValueError as error:
            end = EngineLostError(f"the engine's answer cannot be read: {str(error)[:200]}")
        self._kill()
        self._on_lost(self)
        with self._changed:
            self._end = end
            in_flight, obeying = list(self._in_flight), list(self._obeying)
        self._settle(dict.fromkeys(in_flight, end))
        for obeyed in obeying:
            obeyed.set_exception(end)

    def _wait_readable(self) -> None:
        """Wait until there is something to read. Meanwhile mark cancelled requests for the worker."""
        with self._changed:
            while not self._in_flight and not self._obeying and not self._killed:
                self._changed.wait()
        while not self._connection.poll(WATCH_SECONDS):
            if time.monotonic() > self._latest + self.stall_seconds:
                raise TimeoutError(f"the engine did not answer within {self.stall_seconds:g} s")
            with self._changed:
                watched = [(n, each.request) for n, each in self._in_flight.items() if n < WATCHED]
            for number, request in watched:
                self._cancelled[number] = request.cancelled()

    def _pass_on(self, reply: Reply) -> None:
        self._latest = time.monotonic()
        if isinstance(reply, Outcomes):
            failures = {number: EngineError(reason) for number, reason in reply.failures.items()}
            self._settle({**reply.rankings, **failures})
            return
        with self._changed:
            obeyed = self._obeying.popleft()
        if isinstance(reply, Failure):
            obeyed.set_exception(EngineError(reply.reason))
        else:
            obeyed.set_result(None)

    def _settle(self, outcomes: Mapping[int, Outcome]) -> None:
        """Report outcomes: one call for each callback."""
        reports: dict[OnDone, dict[Any, Outcome]] = {}
        with self._changed:
            for number, outcome in outcomes.items():
                each = self._in_flight.pop(number)
                reports.setdefault(each.on_done, {})[each.key] = outcome
        for on_done, theirs in reports.items():
            on_done(theirs)

    def _wait_started(self) -> None:
        """Wait until the worker reports that it has opened everything."""
        try:
            with self._killed_after(START_SECONDS):
                reply = decode_reply(self._connection.recv_bytes())
        except (EOFError, OSError) as error:  # a timeout is an OSError
            self._kill()
            raise EngineError("the engine's process ended, or took too long, before it was ready") from error
        if isinstance(reply, Failure):
            self._kill()
            raise EngineError(reply.reason)

    @contextmanager
    def _killed_after(self, seconds: float) -> Iterator[None]:
        """Kill the process and raise `TimeoutError` if the block takes longer than `seconds`.

        A process that stops in the middle of a message keeps its reader waiting: only its end frees the reader.
        """
        late = threading.Event()

        def kill() -> None:
            late.set()
            self._kill()

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
