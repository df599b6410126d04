"""A real Redis, or Valkey, for tests."""

from __future__ import annotations

import shutil
import signal
import socket
import subprocess
import threading
from collections.abc import Callable
from pathlib import Path

PROGRAM = next(filter(None, map(shutil.which, ("redis-server", "valkey-server"))), None)


class Redis:
    """A server with a log that is synced before each answer. url: where it listens."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        with socket.socket() as free:
            free.bind(("127.0.0.1", 0))
            self.port = free.getsockname()[1]
        self.url = f"redis://127.0.0.1:{self.port}/0"
        import redis  # an extra

        self.client = redis.Redis.from_url(self.url, decode_responses=True)
        self._error = redis.RedisError
        self.start()

    def start(self) -> None:
        assert PROGRAM is not None
        settings = ["--appendonly", "yes", "--appendfsync", "always", "--save", ""]
        self.process = subprocess.Popen(
            [PROGRAM, "--port", str(self.port), "--bind", "127.0.0.1", "--dir", str(self.folder), *settings],
            stdout=subprocess.DEVNULL,
        )
        wait_for(self.answers)

    def answers(self) -> bool:
        try:
            return bool(self.client.ping())
        except self._error:
            return False

    def kill(self) -> None:
        self.process.send_signal(signal.SIGKILL)
        self.process.wait()


def wait_for(condition: Callable[[], bool]) -> None:
    for _ in range(1000):
        if condition():
            return
        threading.Event().wait(0.01)
    raise AssertionError("the awaited condition did not come true")
