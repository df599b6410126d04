"""The template process, from which engine processes are forked: it has imported everything and computes nothing."""

from __future__ import annotations

import multiprocessing
import os
from multiprocessing import forkserver

CONTEXT = multiprocessing.get_context("forkserver")
CONTEXT.set_forkserver_preload(["server.engine.process.worker"])


def begin() -> None:
    """Start the template now, so that it imports while the caller does. It ends with the caller."""
    os.environ.setdefault("TORCH_CPP_LOG_LEVEL", "ERROR")  # warnings of native code would be no JSON lines
    forkserver.ensure_running()
