"""The process that engine processes are forked from. It has imported everything and computes nothing."""

from __future__ import annotations

import multiprocessing
import os
from multiprocessing import forkserver

CONTEXT = multiprocessing.get_context("forkserver")
CONTEXT.set_forkserver_preload(["server.engine.process.worker"])


def begin() -> None:
    """Start it now, so that its imports take place beside the caller's own. It ends with the caller."""
    os.environ.setdefault("TORCH_CPP_LOG_LEVEL", "ERROR")  # what native code warns of would be no JSON lines
    forkserver.ensure_running()
