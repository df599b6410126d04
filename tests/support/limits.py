"""Memory limits of processes, a little above the memory that they already use. Linux only."""

from __future__ import annotations

import os
import resource
from collections.abc import Iterator
from contextlib import contextmanager
from multiprocessing.connection import Connection
from pathlib import Path

from transformers.utils import logging as transformers_logging

from index.bundle.bundle import Bundle
from server.engine.contract import EngineError
from server.engine.torch_backend.engine import TorchEngine


@contextmanager
def no_more_memory_than(extra: int, pid: int) -> Iterator[None]:
    """Limit the memory of a process to its current memory plus `extra` bytes during the block."""
    pages = int(Path(f"/proc/{pid}/statm").read_text().split()[0])
    before = resource.prlimit(pid, resource.RLIMIT_AS)
    resource.prlimit(pid, resource.RLIMIT_AS, (pages * resource.getpagesize() + extra, before[1]))
    try:
        yield
    finally:
        resource.prlimit(pid, resource.RLIMIT_AS, before)


def open_with(extra: int, path: Path, answer: Connection) -> None:
    """Open an engine with `extra` bytes of memory, and send its message. Run it in a separate process.

    Like the engine's own worker it shows no progress bar: the template that it is forked from may have been started in
    a test whose standard error was a pipe, and that pipe has no reader any more.
    """
    transformers_logging.disable_progress_bar()
    bundle = Bundle.open(path)
    said = "opened"
    with no_more_memory_than(extra, os.getpid()):
        try:
            TorchEngine.open(bundle)
        except EngineError as error:
            said = str(error)
    answer.send(said)
