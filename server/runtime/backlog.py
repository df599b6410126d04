"""The lines that wait to be written to a slow reader: bounded, in order, with a count of what did not fit."""

from __future__ import annotations

import threading
from collections import deque


class Backlog:
    """Lines between the thread that puts them in and the one that takes them out. `put` never waits.

    A line that does not fit is dropped, and so is every line after it until the backlog is empty: a slow reader finds
    one long gap, not many short ones.

    limit: bytes that it holds at most.
    dropped: lines that were dropped or lost so far.
    """

    def __init__(self, limit: int) -> None:
        self.dropped = 0
        self._limit = limit
        self._changed = threading.Condition()  # guards all that follows, and `dropped`
        self._lines: deque[bytes] = deque()
        self._bytes = 0
        self._untold = 0  # dropped lines that the reader has not been told of
        self._full = False
        self._ended = False

    def put(self, line: bytes) -> None:
        """Add a line, or drop it."""
        with self._changed:
            self._full = self._full or self._bytes + len(line) > self._limit
            if self._full:
                self._count_dropped()
            else:
                self._lines.append(line)
                self._bytes += len(line)
            self._changed.notify()

    def take(self) -> tuple[bytes, int] | None:
        """Wait for the next line; return it, and the number of dropped lines to tell the reader before it.

        The line is empty where a gap ends and no line has come since. Returns None when nothing will come any more.
        """
        with self._changed:
            self._changed.wait_for(lambda: self._lines or self._full or self._ended)
            if not self._lines:
                if not self._full:
                    return None
                self._full = False
                return b"", self._untold
            line = self._lines.popleft()
            self._bytes -= len(line)
            return line, 0 if self._full else self._untold

    def told(self, count: int) -> None:
        """Note that the reader has been told of so many dropped lines."""
        with self._changed:
            self._untold -= count

    def lose(self) -> None:
        """Count a line that could not be written, or not even be put in."""
        with self._changed:
            self._count_dropped()

    def end(self) -> None:
        """Let `take` return None once the lines are gone."""
        with self._changed:
            self._ended = True
            self._changed.notify()

    def _count_dropped(self) -> None:
        self.dropped += 1
        self._untold += 1
