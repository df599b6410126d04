"""The engine's own process: it opens the bundle, then ranks what arrives, until the pipe closes.

A thread reads the pipe, so that the server does not wait for a step when it writes; between two steps the engine takes
the commands that were read. The other side is `Child`. The worker ends when the pipe closes, also because the server
died.
"""

from __future__ import annotations

import ctypes
import logging
import multiprocessing
import signal
import threading
from collections import deque
from collections.abc import Callable, Mapping
from functools import partial
from multiprocessing.connection import Connection
from pathlib import Path

import torch
from transformers.utils import logging as transformers_logging

from index.bundle.bundle import INDEX, read_info
from index.bundle.item_index import open_identifiers
from index.bundle.manifest import BundleError, refusing, verify
from index.trie.allowed import Allowed
from server.engine.contract import EngineBrokenError, EngineError, Outcome, Ranking, RankRequest
from server.engine.options import EngineOptions
from server.engine.process.open import open_engine
from server.engine.process.wire import (
    Command,
    Done,
    Failure,
    ForgetCommand,
    OpenCommand,
    Outcomes,
    Reply,
    WireRequest,
    decode_command,
    encode,
)
from server.runtime import garbage, logs

logger = logging.getLogger("server.engine.process.worker")

OPEN_VERSIONS = 4  # of the index: requests in flight during a swap still use the older ones


def run(
    connection: Connection,
    lifeline: Connection,
    cancelled: ctypes.Array[ctypes.c_bool],
    path: Path,
    version: str,
    options: EngineOptions,
    level: str,
    bundle_id: str,
) -> None:
    """Run the process to its end. Its first message is `Done`, or `Failure` and then it ends.

    lifeline: only held, so that it is closed when the process ends.
    cancelled: bool [WATCHED], shared with the server, which marks there requests in flight, by number, to be dropped.
    """
    for kind in (signal.SIGINT, signal.SIGTERM):
        signal.signal(kind, signal.SIG_IGN)  # they go to the server, which ends this process last
    multiprocessing.set_start_method("fork", force=True)  # vLLM's lock is then not left behind by a kill
    logs.configure(level)
    transformers_logging.disable_progress_bar()
    transformers_logging.disable_default_handler()
    transformers_logging.enable_propagation()
    if options.threads:
        torch.set_num_threads(options.threads)
    try:
        worker = Worker(connection, path, version, options, bundle_id, cancelled)
    except Exception as error:  # whatever it is, the server has to learn of it
        expected = isinstance(error, (BundleError, EngineError))
        if not expected:
            _log(error)
        connection.send_bytes(encode(Failure(reason=str(error) if expected else _reason(error))))
        return
    garbage.settle()
    try:
        connection.send_bytes(encode(Done()))
        worker.serve()
    except (EOFError, BrokenPipeError, ConnectionResetError):
        return
    except EngineBrokenError as error:
        logger.error("the engine cannot go on", extra={"reason": str(error)[:500]})


class Worker:
    """An engine, and the versions of the index that its requests may name.

    Opens the weights and one version, both checked against their manifests. Raises `BundleError`, `EngineError`.
    """

    def __init__(
        self,
        connection: Connection,
        path: Path,
        version: str,
        options: EngineOptions,
        bundle_id: str,
        cancelled: ctypes.Array[ctypes.c_bool],
    ) -> None:
        self._connection = connection
        self._commands: deque[Command | None] = deque()  # None: the pipe is closed
        self._unread = threading.Semaphore(0)  # counts them
        self._cancelled = cancelled
        self._folder = path / INDEX
        self._versions: dict[str, tuple[Allowed, ...]] = {}  # living items by each kind of identifiers
        with refusing(path, "opened"):
            verify(path, apart=INDEX)
            verify(self._folder / version)
            info = read_info(path)
            if info.bundle_id != bundle_id:
                raise BundleError(f"{path} holds another bundle by now, {info.bundle_id}; refresh the bundle")
        self._open(version)
        living, *others = self._versions[version]
        self._engine = open_engine(path, info, living.trie, living.chosen, options, *others)

    def serve(self) -> None:
        """Obey commands one after the other.

        Raises `EOFError` if the pipe closes, `EngineBrokenError` if the engine cannot go on.
        """
        threading.Thread(target=self._read, name="commands", daemon=True).start()
        while True:
            self._unread.acquire()
            first = self._obey(self._commands.popleft())
            self._engine.serve(first, self._arrivals, self._report)

    def _read(self) -> None:
        try:
            while True:
                self._put(decode_command(self._connection.recv_bytes()))
        except (EOFError, OSError):
            pass
        finally:
            self._put(None)

    def _put(self, command: Command | None) -> None:
        self._commands.append(command)
        self._unread.release()

    def _arrivals(self) -> dict[int, RankRequest]:
        """Return the requests that came since the last call."""
        requests: dict[int, RankRequest] = {}
        while self._unread.acquire(blocking=False):
            requests |= self._obey(self._commands.popleft())
        return requests

    def _obey(self, command: Command | None) -> dict[int, RankRequest]:
        """Obey a command; returns requests to rank. A fault concerns this one version or request only."""
        if command is None:
            raise EOFError
        if isinstance(command, OpenCommand):
            self._send(self._tried(partial(self._open, command.version)))
            return {}
        if isinstance(command, ForgetCommand):
            self._send(self._tried(self._engine.forget))
            return {}
        requests: dict[int, RankRequest] = {}
        for number, request in command.requests.items():
            try:
                requests[number] = self._read_request(number, request)
            except Exception as error:
                self._report({number: error})
        return requests

    def _tried(self, work: Callable[[], None]) -> Reply:
        try:
            work()
        except Exception as error:
            _log(error)
            return Failure(reason=_reason(error))
        return Done()

    def _read_request(self, number: int, request: WireRequest) -> RankRequest:
        if request.version not in self._versions:  # closed meanwhile, or opened before a restart
            self._open(request.version)
        return request.rank_request(self._versions, partial(self._is_cancelled, number))

    def _report(self, outcomes: Mapping[int, Outcome]) -> None:
        """Send outcomes to the server. Raises `EngineBrokenError` if the device failed."""
        rankings = {number: each for number, each in outcomes.items() if isinstance(each, Ranking)}
        errors = {number: each for number, each in outcomes.items() if isinstance(each, Exception)}
        for error in {id(each): each for each in errors.values()}.values():  # one may have failed many
            _log(error)
        failures = {number: _reason(error) for number, error in errors.items()}
        self._send(Outcomes(rankings=rankings, failures=failures))
        for error in errors.values():
            # After such an error everything that this process asks of the device fails.
            if isinstance(error, torch.AcceleratorError):
                raise EngineBrokenError(f"the device failed: {error}") from error

    def _send(self, reply: Reply) -> None:
        self._connection.send_bytes(encode(reply))

    def _is_cancelled(self, number: int) -> bool:
        """Whether nobody waits any more for the request of this number."""
        return number < len(self._cancelled) and self._cancelled[number]

    def _open(self, version: str) -> None:
        """Open a version of the index; the server has checked its files already."""
        with refusing(self._folder / version, "opened"):
            self._versions.pop(version, None)
            self._versions[version] = open_identifiers(self._folder / version)
        while len(self._versions) > OPEN_VERSIONS:
            del self._versions[next(iter(self._versions))]


def _reason(error: Exception) -> str:
    return f"{type(error).__name__}: {error}"[:500]


def _log(error: Exception) -> None:
    """The engine sees token ids only: its message holds no user text."""
    logger.error("the engine failed", extra={"reason": str(error)[:500]}, exc_info=error)
