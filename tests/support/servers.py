"""A server process, spoken to over sockets."""

from __future__ import annotations

import json
import os
import subprocess
import sys
import threading
import time
from collections.abc import Callable
from pathlib import Path
from types import TracebackType

ROOT = Path(__file__).parents[2]


class Server:
    """`python -m server` on a free port, killed at the end. `lines` holds what it logged so far."""

    def __init__(self, bundle: Path, *arguments: str, **settings: str) -> None:
        self.lines: list[dict[str, object]] = []
        self.url = ""
        self._ready = threading.Event()
        self.process = subprocess.Popen(
            [sys.executable, "-m", "server", str(bundle), "--port", "0", "--threads", "1", *arguments],
            cwd=ROOT,
            env=os.environ | settings,
            stderr=subprocess.PIPE,
            text=True,
        )
        self.reader = threading.Thread(target=self._read, daemon=True)
        self.reader.start()

    def _read(self) -> None:
        assert self.process.stderr is not None
        for line in self.process.stderr:
            self.lines.append(json.loads(line))
            if self.lines[-1]["message"] == "ready":
                self.url = str(self.lines[-1]["url"])
                self._ready.set()
        self._ready.set()  # it ended

    def __enter__(self) -> Server:
        if not self._ready.wait(60) or not self.url:
            self.process.kill()
            raise AssertionError(f"the server did not start: {self.lines}")
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.process.kill()
        self.process.wait()

    @property
    def port(self) -> int:
        return int(self.url.rpartition(":")[2])

    @property
    def engine_pid(self) -> int:
        """Process id of the engine that came last."""
        return int(str([line["pid"] for line in self.lines if "pid" in line][-1]))


def wait_until(condition: Callable[[], bool], seconds: float = 20) -> None:
    end = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < end, "the awaited condition did not come true"
        time.sleep(0.005)
