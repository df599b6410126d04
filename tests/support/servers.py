"""Servers with sockets: a process as in production, or a thread of the test."""

from __future__ import annotations

import json
import os
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from types import TracebackType

import uvicorn
from fastapi import FastAPI

from support.paths import ROOT


class Server:
    """A process `python -m server` on a free port, killed at the end.

    program: another script with the same arguments.
    lines: the log records so far.
    reading: cleared while the log shall not be read.
    """

    def __init__(self, bundle: Path, *arguments: str, program: Path | None = None, **settings: str) -> None:
        command = ["-m", "server"] if program is None else [str(program)]
        self.lines: list[dict[str, object]] = []
        self.url = ""
        self.reading = threading.Event()
        self.reading.set()
        self._ready = threading.Event()
        self.process = subprocess.Popen(
            [sys.executable, *command, str(bundle), "--port", "0", "--threads", "1", *arguments],
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
            self.reading.wait()
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
        """Process id of the newest engine."""
        return int(str([line["pid"] for line in self.lines if "pid" in line][-1]))


@contextmanager
def serving(app: FastAPI) -> Iterator[int]:
    """Serve an application in a thread and yield its port."""
    server = uvicorn.Server(uvicorn.Config(app, port=0, lifespan="on", log_config=None))
    thread = threading.Thread(target=server.run)
    thread.start()
    while not server.started:
        time.sleep(0.01)
    try:
        yield int(server.servers[0].sockets[0].getsockname()[1])
    finally:
        server.should_exit = True
        thread.join()


def wait_until(condition: Callable[[], bool], seconds: float = 20) -> None:
    end = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < end, "the awaited condition did not come true"
        time.sleep(0.005)
