"""Signals at every moment of the start: one line, the right exit code, and no process left behind."""

from __future__ import annotations

import json
import math
import os
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import psutil
import pytest
from support.paths import ROOT

from server.stopping import EXIT_CODES

Moment = Callable[["Start"], bool]


class Start:
    """A server that starts, as a job of a terminal: in a process group of its own."""

    def __init__(self, bundle: Path, log: Path) -> None:
        self.log = log
        self.began = time.monotonic()
        with log.open("wb") as stderr:
            self.process = subprocess.Popen(
                [sys.executable, "-m", "server", str(bundle), "--port", "0", "--threads", "1"],
                cwd=ROOT,
                stdin=subprocess.DEVNULL,
                stderr=stderr,
                start_new_session=True,
                env=os.environ | {"TMPDIR": str(log.parent)},
            )
        self.engine_began = math.inf  # the template forked it
        self.family: set[psutil.Process] = set()

    def look(self) -> bool:
        """Note the processes that there are now; whether the server is still there."""
        try:
            server = psutil.Process(self.process.pid)
            self.family.update(server.children(recursive=True))
            if self.engine_began == math.inf and any(each.children() for each in server.children()):
                self.engine_began = time.monotonic()
        except psutil.NoSuchProcess:
            return False
        return self.process.poll() is None

    @property
    def lines(self) -> list[str]:
        return self.log.read_text("utf-8").splitlines()

    @property
    def is_ready(self) -> bool:
        return any('"message": "ready"' in line for line in self.lines)


def after(seconds: float) -> Moment:
    return lambda start: time.monotonic() > start.began + seconds


def template_begins(start: Start) -> bool:
    return len(start.family) >= 2  # and the resource tracker


def template_is_ready(start: Start) -> bool:
    """It imports torch; its memory tells how far it is."""
    return any(each.is_running() and each.memory_info().rss > 250 << 20 for each in start.family)


def after_the_engine(seconds: float) -> Moment:
    return lambda start: time.monotonic() > start.engine_began + seconds


MOMENTS: dict[str, Moment] = {
    "settings": after(0.5),
    "template": template_begins,
    "imports": after(2.5),
    "imports of the template": template_is_ready,
    "engine": after_the_engine(0),
    "weights": after_the_engine(0.1),
    "warm-up": after_the_engine(0.3),
}
QUICK = [  # each start takes seconds
    ("template", signal.SIGINT),
    ("imports", signal.SIGTERM),
    ("weights", signal.SIGINT),
    ("warm-up", signal.SIGTERM),
]


@pytest.fixture
def start(tiny_bundle: Path, tmp_path: Path) -> Iterator[Start]:
    started = Start(tiny_bundle, tmp_path / "stderr")
    yield started
    for each in (*started.family, started.process):
        if each.is_running() if isinstance(each, psutil.Process) else each.poll() is None:
            each.kill()
    started.process.wait()


def check_end(start: Start, kind: signal.Signals) -> None:
    """Check what is left after a signal."""
    start.look()
    code = start.process.wait(10)
    assert not psutil.wait_procs(start.family, timeout=5)[1]
    assert start.lines, code
    *before, last = start.lines
    assert last == f"stopped by {kind.name}"
    assert code == EXIT_CODES[kind]
    assert all(json.loads(line)["level"] == "info" for line in before), before  # and no traceback
    left = {path.name for path in start.log.parent.iterdir()} - {start.log.name}
    assert not left, "files are left in the folder for temporary ones"


@pytest.mark.parametrize(
    ("moment", "kind"),
    [
        pytest.param(moment, kind, marks=() if (moment, kind) in QUICK else pytest.mark.slow)
        for moment in MOMENTS
        for kind in EXIT_CODES
    ],
    ids=lambda value: value if isinstance(value, str) else value.name,
)
def test_a_signal_ends_the_start_at_once(start: Start, moment: str, kind: signal.Signals) -> None:
    """SIGINT goes to the whole process group, as from a terminal, SIGTERM to the server, as from a supervisor."""
    reached = MOMENTS[moment]
    while start.look() and not reached(start):
        time.sleep(0.01)
    if start.is_ready:
        pytest.skip("it was ready before the signal")
    (os.killpg if kind is signal.SIGINT else os.kill)(start.process.pid, kind)
    check_end(start, kind)


def test_impatient_signals_end_it_once(start: Start) -> None:
    while start.look() and not template_begins(start):
        time.sleep(0.01)
    for _ in range(20):
        os.killpg(start.process.pid, signal.SIGINT)
    check_end(start, signal.SIGINT)


def test_a_refused_start_leaves_no_process_either(tiny_bundle: Path, tmp_path: Path) -> None:
    """The template would import for seconds after its server has gone."""
    broken = Path(shutil.copytree(tiny_bundle, tmp_path / "broken"))
    (broken / "config.json").write_text(
        "{}"
    )  # what is no bundle at all is refused before the template begins
    start = Start(broken, tmp_path / "stderr")
    while start.look():
        time.sleep(0.01)
    assert start.process.wait() == 2
    assert start.family
    assert not psutil.wait_procs(start.family, timeout=2)[1]
    (line,) = start.lines
    assert line.startswith("error: ")


@pytest.mark.slow
def test_a_signal_at_any_time_of_the_start(tiny_bundle: Path, tmp_path: Path) -> None:
    """Signals come from the half second on, before which Python itself starts, until the server is ready."""
    for k in range(40):
        folder = tmp_path / str(k)
        folder.mkdir()
        start = Start(tiny_bundle, folder / "stderr")
        moment, kind = after(0.5 + 0.15 * k), (signal.SIGINT, signal.SIGTERM)[k % 2]
        while start.look() and not moment(start) and not start.is_ready:
            time.sleep(0.01)
        ready = start.is_ready
        os.killpg(start.process.pid, kind)
        if ready:
            assert start.process.wait(20) == 0
            assert not psutil.wait_procs(start.family, timeout=5)[1]
        else:
            check_end(start, kind)
