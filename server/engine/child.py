"""One engine process, seen from the server: its pipe, and how long it may take."""

from __future__ import annotations

import ctypes
import threading
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from multiprocessing.context import ForkServerProcess
from pathlib import Path

from server.engine import worker
from server.engine.contract import EngineError
from server.engine.template import CONTEXT
from server.engine.torch_engine import EngineOptions
from server.engine.wire import Command, Failure, Reply, decode_reply, encode

START_SECONDS = 600.0  # for a worker to open its bundle, and again to warm up
WATCHED = 1024  # requests of a batch that can be given up; those of a larger one are computed to the end
WATCH_SECONDS = 0.05  # between two looks whether somebody still waits


class Child:
    """Forked from the template; it has opened the bundle. Used by one thread at a time.

    version: of the index. bundle_id: what the bundle at `path` has to be. Raises `EngineError` if it does not start.
    """

    def __init__(
        self, path: Path, version: str, options: EngineOptions, log_level: str, bundle_id: str
    ) -> None:
        self._connection, theirs = CONTEXT.Pipe()
        self._given_up: ctypes.Array[ctypes.c_bool] = CONTEXT.RawArray(ctypes.c_bool, WATCHED)
        self.process: ForkServerProcess = CONTEXT.Process(
            target=worker.run,
            args=(theirs, self._given_up, path, version, options, log_level, bundle_id),
            name="gems-engine",
            daemon=True,
        )
        self.process.start()
        theirs.close()
        with self._starting(), self._killed_after(START_SECONDS):
            self._reply()
        self.started = time.monotonic()

    def warm_up(self, command: Command) -> None:
        """Raises `EngineError`; the process has ended then."""
        with self._starting():
            self.exchange(command, START_SECONDS)
        self.started = time.monotonic()

    def exchange(self, command: Command, seconds: float, gone: Sequence[Callable[[], bool]] = ()) -> Reply:
        """Send a command and wait for its reply; the process is killed if both together take longer.

        gone: of each request of a batch, whether nobody waits for it any more; the worker then leaves it.
        Raises `EngineError` for a `Failure`, `TimeoutError`, `EOFError` or `OSError` if the process is gone.
        """
        watched = gone[:WATCHED]
        for number in range(len(watched)):
            self._given_up[number] = False
        with self._killed_after(seconds):
            self._connection.send_bytes(encode(command))
            while not self._connection.poll(WATCH_SECONDS if watched else None):
                for number, given_up in enumerate(watched):
                    self._given_up[number] = given_up()
            return self._reply()

    def _reply(self) -> Reply:
        reply = decode_reply(self._connection.recv_bytes())
        if isinstance(reply, Failure):
            raise EngineError(reply.reason)
        return reply

    @contextmanager
    def _killed_after(self, seconds: float) -> Iterator[None]:
        """Raise `TimeoutError` if the block takes longer. A process that is stopped or stuck reads nothing, and
        whoever writes to it waits: only its end frees them."""
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

    @contextmanager
    def _starting(self) -> Iterator[None]:
        try:
            yield
        except (EOFError, OSError) as error:  # a timeout is an OSError
            self.process.kill()
            raise EngineError("the engine's process ended, or took too long, before it was ready") from error
        except EngineError:
            self.process.kill()
            raise
