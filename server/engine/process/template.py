"""The template process, from which engine processes are forked: it has imported everything and computes nothing."""

from __future__ import annotations

import multiprocessing
import os
import shutil
import signal
import threading
from contextlib import suppress
from multiprocessing import forkserver, resource_tracker
from pathlib import Path
from typing import Any

CONTEXT = multiprocessing.get_context("forkserver")
CONTEXT.set_forkserver_preload(["server.engine.process.group", "server.engine.process.worker"])

_SIGNALS = (signal.SIGINT, signal.SIGTERM)


def begin() -> None:
    """Start the template now, so that it imports while the caller does. It ends with the caller.

    A signal that comes meanwhile, on the main thread, is handled afterwards, when `end` knows the process.
    """
    os.environ.setdefault("TORCH_CPP_LOG_LEVEL", "ERROR")  # warnings of native code would be no JSON lines
    # oneDNN compiles a kernel for each number of rows and keeps 1,024 of them: 140 MB that gain no speed
    os.environ.setdefault("ONEDNN_PRIMITIVE_CACHE_CAPACITY", "64")
    held: list[int] = []
    handlers: dict[signal.Signals, Any] = {}
    if threading.current_thread() is threading.main_thread():  # no other one may have handlers
        handlers = {kind: signal.signal(kind, lambda number, _: held.append(number)) for kind in _SIGNALS}
    resource_tracker.ensure_running()  # unblocks the signals when it starts, so it starts before they are blocked
    # Blocked signals are inherited: they are the server's business, also before the template has its own group.
    blocked = signal.pthread_sigmask(signal.SIG_BLOCK, _SIGNALS)
    try:
        forkserver.ensure_running()
    finally:
        signal.pthread_sigmask(signal.SIG_SETMASK, blocked)
        for kind, handler in handlers.items():
            signal.signal(kind, handler)
    for number in held:
        signal.raise_signal(number)


def end() -> None:
    """Kill the template and every engine that was forked from it, and remove its socket."""
    server: Any = forkserver._forkserver  # its fields are private, but there is no other way to its id
    if server._forkserver_pid is None:
        return
    for kill in (os.killpg, os.kill):  # it may not have its group yet
        with suppress(ProcessLookupError):
            kill(server._forkserver_pid, signal.SIGKILL)
    shutil.rmtree(Path(server._forkserver_address).parent, ignore_errors=True)
