"""A pipe in place of standard error, so that nobody who writes to it ever waits for those who read it.

    logs, prints, tracebacks, native code, child processes → pipe → backlog → standard error

One thread empties the pipe into the backlog at once. Another writes the backlog to the real standard error, one line
after the other, and may wait there as long as the reader likes; lines that do not fit meanwhile are dropped and
counted. Child processes inherit the pipe with descriptor 2, so what they write needs nothing of its own.
"""

from __future__ import annotations

import faulthandler
import fcntl
import logging
import os
import select
import sys
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress

from server.runtime.backlog import Backlog
from server.runtime.logs import JsonLines

BACKLOG_BYTES = 256 << 10  # about 1,000 lines of requests
PIPE_BYTES = 1 << 20  # room for native code that writes while it keeps the reading thread from running
LONGEST_LINE = 64 << 10  # bytes; of a longer one there is no end in sight, and it is dropped
FLUSH_SECONDS = 2.0  # time for the reader to take the last lines when the process ends

_STDERR = 2
_open: list[LogPipe] = []  # the pipe of this process, if there is one


def fill_standard_descriptors() -> None:
    """Open the null device in place of closed descriptors 0 to 2: a socket with number 2 would be taken for stderr."""
    while (descriptor := os.open(os.devnull, os.O_RDWR)) <= _STDERR:
        pass
    os.close(descriptor)


def dropped_lines() -> int:
    """Return the number of lines that this process and its children could not write to standard error."""
    return sum(each.dropped for each in _open)


def write_last(line: bytes) -> None:
    """Write a line to the real standard error if it takes one now; for a process that ends at once."""
    descriptor = _open[-1].real if _open else _STDERR
    ready = select.poll()
    ready.register(descriptor, select.POLLOUT)
    with suppress(OSError):
        if ready.poll(0):
            os.write(descriptor, line)


@contextmanager
def log_pipe() -> Iterator[None]:
    """Put a pipe in place of standard error for the block; afterwards write the rest, for `FLUSH_SECONDS` at most.

    Start child processes within the block, from the main thread on. What they write after it is lost.
    """
    pipe = LogPipe()
    _open.append(pipe)
    try:
        yield
    finally:
        pipe.close()
        _open.remove(pipe)


class LogPipe:
    """The pipe and its two threads, in use from the start until `close`.

    real: descriptor of the real standard error.
    """

    def __init__(self) -> None:
        self._closing = False
        self._torn = False  # the last line was written in part
        self._backlog = Backlog(BACKLOG_BYTES)
        self._notice = JsonLines()
        self.real = _standard_error()
        self._end, self._writing = os.pipe()
        with suppress(AttributeError, OSError):  # Linux only, and only as much as the user may have
            fcntl.fcntl(self._writing, fcntl.F_SETPIPE_SZ, PIPE_BYTES)
        if sys.stderr is not None:
            sys.stderr.flush()
        os.dup2(self._writing, _STDERR)
        if sys.stderr is None:  # the process was started without it
            sys.stderr = open(_STDERR, "w", buffering=1, errors="backslashreplace", closefd=False)  # noqa: SIM115
        if faulthandler.is_enabled():  # at a crash no thread is left to empty the pipe
            faulthandler.enable(file=self.real)
        self._threads = [
            threading.Thread(target=work, name=name, daemon=True)
            for work, name in ((self._read, "log-reader"), (self._write, "log-writer"))
        ]
        for thread in self._threads:
            thread.start()

    @property
    def dropped(self) -> int:
        """Lines that could not be written so far."""
        return self._backlog.dropped

    def close(self) -> None:
        """Put standard error back and write the rest of the lines, for `FLUSH_SECONDS` at most."""
        deadline = time.monotonic() + FLUSH_SECONDS
        with suppress(OSError):
            sys.stderr.flush()
        os.dup2(self.real, _STDERR)  # what comes later needs no thread
        if faulthandler.is_enabled():
            faulthandler.enable(file=_STDERR)
        self._closing = True
        os.write(self._writing, b"\n")  # wakes the reading thread; nothing of this process follows it
        for thread in self._threads:
            thread.join(max(0.0, deadline - time.monotonic()))
        if not any(thread.is_alive() for thread in self._threads):
            for descriptor in (self._end, self._writing, self.real):
                os.close(descriptor)

    def _read(self) -> None:
        """Move lines from the pipe to the backlog until `close` was called and the pipe is empty."""
        more = select.poll()
        more.register(self._end, select.POLLIN)
        rest, endless = b"", False
        while not self._closing or more.poll(0):
            *lines, rest = (rest + os.read(self._end, PIPE_BYTES)).split(b"\n")
            for line in lines:
                if endless or len(line) > LONGEST_LINE:
                    self._backlog.lose()
                elif line.strip():
                    self._backlog.put(line + b"\n")
                endless = False
            if endless or len(rest) > LONGEST_LINE:
                rest, endless = b"", True
        self._backlog.end()

    def _write(self) -> None:
        """Write lines to the real standard error until there will be no more."""
        while (taken := self._backlog.take()) is not None:
            line, untold = taken
            if untold and self._written(self._gap(untold)):
                self._backlog.told(untold)
            if line and not self._written(line):
                self._backlog.lose()

    def _written(self, line: bytes) -> bool:
        """Write a line, and return whether that was possible. Waits while nobody reads."""
        rest = whole = b"\n" + line if self._torn else line
        try:
            while rest:
                try:
                    rest = rest[os.write(self.real, rest) :]
                except BlockingIOError:  # who gave us the descriptor does not want it to wait
                    ready = select.poll()
                    ready.register(self.real, select.POLLOUT)
                    ready.poll()
        except OSError:  # closed, or the disk is full: perhaps the next one can be written
            if len(rest) < len(whole):
                self._torn = len(rest) < len(line)
            return False
        self._torn = False
        return True

    def _gap(self, count: int) -> bytes:
        record = logging.LogRecord(__name__, logging.WARNING, __file__, 0, "log lines were dropped", (), None)
        record.dropped = count
        return self._notice.format(record).encode() + b"\n"


def _standard_error() -> int:
    """Return a descriptor of the real standard error; of nothing, if the process was started without it."""
    if sys.__stderr__ is None:  # descriptor 2 may be another file by now
        return os.open(os.devnull, os.O_WRONLY)
    return os.dup(_STDERR)
