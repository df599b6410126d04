"""What runs in the engine's own process: open the bundle, then answer one message after the other.

The other side is `EngineProcess`. The worker ends when the pipe closes, that is also when the server dies.
"""

from __future__ import annotations

import ctypes
import logging
import multiprocessing
import signal
from functools import partial
from multiprocessing.connection import Connection
from pathlib import Path

import torch
from transformers.utils import logging as transformers_logging

from index.allowed import SlotSet
from index.bundle import INDEX, BundleInfo
from index.item_index import open_identifiers
from index.manifest import BundleError, refusing, verify
from index.trie import Trie
from server import logs
from server.engine.contract import EngineError
from server.engine.open import open_engine
from server.engine.torch_engine import EngineOptions
from server.engine.wire import Command, Done, Failure, Open, Rankings, Reply, decode_command, encode

logger = logging.getLogger("server.engine.worker")

OPEN_VERSIONS = 4  # of the index: those of the requests that are under way while it is swapped


def run(
    connection: Connection,
    given_up: ctypes.Array[ctypes.c_bool],
    path: Path,
    version: str,
    options: EngineOptions,
    level: str,
    bundle_id: str,
) -> None:
    """The whole life of the process. The first message that it sends is `Done`, or `Failure` and its end.

    given_up: shared with the server, who sets there, while a batch is ranked, which of its requests to leave.
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
        worker = Worker(path, version, options, bundle_id, given_up)
    except (BundleError, EngineError) as error:
        connection.send_bytes(encode(Failure(reason=str(error))))
        return
    try:
        connection.send_bytes(encode(Done()))
        while True:
            connection.send_bytes(encode(worker.answer(decode_command(connection.recv_bytes()))))
    except (EOFError, BrokenPipeError, ConnectionResetError):
        return


class Worker:
    """An engine, and the versions of the index that its requests may name.

    Opens the weights and one version, both checked against their manifests. Raises `BundleError`, `EngineError`.
    """

    def __init__(
        self,
        path: Path,
        version: str,
        options: EngineOptions,
        bundle_id: str,
        given_up: ctypes.Array[ctypes.c_bool],
    ) -> None:
        self._given_up = given_up
        self._folder = path / INDEX
        self._versions: dict[str, tuple[Trie, SlotSet | None]] = {}
        with refusing(path, "opened"):
            verify(path, apart=INDEX)
            verify(self._folder / version)
            info = BundleInfo.load(path / "bundle.json")
            if info.bundle_id != bundle_id:
                raise BundleError(f"{path} holds another bundle by now, {info.bundle_id}; refresh the bundle")
            self._open(version)
            trie, living = self._versions[version]
            self._engine = open_engine(path, info, trie, living, options)

    def answer(self, command: Command) -> Reply:
        """Whatever goes wrong becomes the reply: it concerns this one message."""
        try:
            if isinstance(command, Open):
                self._open(command.version)
                return Done()
            requests = []
            for number, request in enumerate(command.requests):
                if request.version not in self._versions:  # forgotten, or of before a restart
                    self._open(request.version)
                requests.append(request.rank_request(self._versions, partial(self._gone, number)))
            return Rankings(rankings=self._engine.rank(requests))
        except Exception as error:
            # The engine sees token ids only: its message holds no user text.
            logger.error("the engine failed", extra={"reason": str(error)[:500]}, exc_info=error)
            return Failure(reason=f"{type(error).__name__}: {error}"[:500])

    def _gone(self, number: int) -> bool:
        """Whether nobody waits any more for the request of this number in the batch."""
        return number < len(self._given_up) and self._given_up[number]

    def _open(self, version: str) -> None:
        """The server has checked the version's files when it took it up."""
        with refusing(self._folder / version, "opened"):
            self._versions.pop(version, None)
            self._versions[version] = open_identifiers(self._folder / version)
        while len(self._versions) > OPEN_VERSIONS:
            del self._versions[next(iter(self._versions))]
