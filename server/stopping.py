"""The end of the server's process: nothing is left behind, whenever a signal comes.

While the server starts, it has promised nothing to anybody: SIGINT and SIGTERM end it at once, with one line on stderr.
From then on `launch.DrainingServer` handles them. A KeyboardInterrupt would not do: the libraries that are imported
swallow it, or turn it into errors of their own.
"""

from __future__ import annotations

import os
import signal
from types import FrameType
from typing import NoReturn

from server.engine.process import template
from server.runtime.log_pipe import write_last

# As shells report a program that Ctrl-C ended; and 0, as after the start, for one that was asked to end and did.
EXIT_CODES = {signal.SIGINT: 130, signal.SIGTERM: 0}


def listen() -> None:
    """Handle both signals by `stop`. Call it on the main thread."""
    for kind in EXIT_CODES:
        signal.signal(kind, stop)


def stop(kind: int, frame: FrameType | None) -> NoReturn:
    """End the process because of a signal."""
    for each in EXIT_CODES:
        signal.signal(each, signal.SIG_IGN)  # an impatient second one would only repeat the line
    named = signal.Signals(kind)
    write_last(f"stopped by {named.name}\n".encode())  # `sys.stderr` may be busy with a line
    end(EXIT_CODES[named])


def end(code: int) -> NoReturn:
    """End this process and those that it started.

    code: exit code.
    """
    template.end()
    os._exit(code)  # a regular exit would spend seconds on freeing the imported modules
