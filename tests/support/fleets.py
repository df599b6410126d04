"""Fleets of servers: the process of `python -m server.ray`, with everything that it starts."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Iterable
from pathlib import Path
from types import TracebackType
from typing import Any

import httpx
import psutil
from prometheus_client.parser import text_string_to_metric_families

from support.paths import ROOT

REPLICA = "ray::ServeReplica:gems:Replica"
START_SECONDS = 180.0
STOP_SECONDS = 120.0
VOLATILE = ("request_id", "timings_ms", "cached_tokens")
PAUSE = 0.2  # seconds between two attempts of a client


class FleetProcess:
    """A fleet on a free port; at the end it is stopped, and killed with all its processes if that does not help.

    lines: what it wrote to stderr.
    """

    def __init__(self, bundle: Path, *arguments: str, **settings: str) -> None:
        self.lines: list[str] = []
        self.url = ""
        self._ready = threading.Event()
        self.process = subprocess.Popen(
            [sys.executable, "-m", "server.ray", str(bundle), "--port", "0", "--threads", "1", *arguments],
            cwd=ROOT,
            env=os.environ | settings,
            stdout=subprocess.DEVNULL,
            stderr=subprocess.PIPE,
            text=True,
        )
        self._reader = threading.Thread(target=self._read, daemon=True)
        self._reader.start()

    def _read(self) -> None:
        assert self.process.stderr is not None
        for line in self.process.stderr:
            self.lines.append(line)
            if '"message": "ready"' in line:
                self.url = json.loads(line)["url"]
                self._ready.set()
        self._ready.set()  # it ended

    def __enter__(self) -> FleetProcess:
        if not self._ready.wait(START_SECONDS) or not self.url:
            self.stop()
            raise AssertionError(f"the fleet did not start: {''.join(self.lines[-40:])}")
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.stop()

    @property
    def family(self) -> list[psutil.Process]:
        """All processes that it has started and that live."""
        try:
            return psutil.Process(self.process.pid).children(recursive=True)
        except psutil.NoSuchProcess:
            return []

    @property
    def replicas(self) -> list[psutil.Process]:
        """The processes of the replicas."""
        return [each for each in self.family if _title(each).startswith(REPLICA)]

    def stop(self) -> list[psutil.Process]:
        """Stop it by SIGTERM; return those of its processes that were left, which are killed."""
        if self.process.poll() is None:
            self.process.send_signal(signal.SIGTERM)
        family, end = set(self.family), time.monotonic() + STOP_SECONDS
        while self.process.poll() is None:  # a fleet that starts goes on starting processes
            family.update(self.family)
            if time.monotonic() > end:
                self.process.kill()
            time.sleep(0.05)
        left = living(family)
        for each in left:
            each.kill()
        return left


def history(person: int, length: int) -> list[dict[str, str]]:
    """Return a history of the tiny bundle's items; those of different people begin with different items."""
    return [{"item_id": f"item-{(7 * person + k) % 60}"} for k in range(length)]


def stable(answer: Any) -> Any:
    """Return an answer without what differs from one request to the next."""
    if isinstance(answer, dict):
        return {name: stable(value) for name, value in answer.items() if name not in VOLATILE}
    return [stable(each) for each in answer] if isinstance(answer, list) else answer


def count(fleet: FleetProcess, name: str) -> dict[str, float]:
    """Return the sum of a metric by replica."""
    found: dict[str, float] = {}
    for family in text_string_to_metric_families(httpx.get(f"{fleet.url}/metrics", timeout=20).text):
        for sample in family.samples:
            if sample.name == name:
                replica = sample.labels["replica"]
                found[replica] = found.get(replica, 0.0) + sample.value
    return found


def living(processes: Iterable[psutil.Process], seconds: float = 5.0) -> list[psutil.Process]:
    """Return the processes that have not ended after so many seconds; a zombie has ended, and waits for its parent."""
    end = time.monotonic() + seconds
    while True:
        left = [each for each in processes if _lives(each)]
        if not left or time.monotonic() > end:
            return left
        time.sleep(0.05)


def _lives(process: psutil.Process) -> bool:
    try:
        return process.is_running() and process.status() != psutil.STATUS_ZOMBIE
    except psutil.NoSuchProcess:
        return False


def _title(process: psutil.Process) -> str:
    try:
        return " ".join(process.cmdline())
    except (psutil.NoSuchProcess, psutil.ZombieProcess):
        return ""


def answered(url: str, body: dict[str, Any], seconds: float = 30.0) -> tuple[httpx.Response, int]:
    """POST as a client that sends again what was not answered; return the answer and the number of attempts."""
    end, attempts = time.monotonic() + seconds, 0
    while True:
        attempts += 1
        try:
            response = httpx.post(url, json=body, timeout=15)
            if response.status_code < 500 and response.status_code != 429:
                return response, attempts
            problem = response.text
        except httpx.TransportError as error:
            problem = repr(error)
        assert time.monotonic() < end, f"not answered within {seconds} s: {problem}"
        time.sleep(PAUSE)
