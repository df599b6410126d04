"""Standard error that nobody reads stops nobody; what is read is whole, in order, and says what is missing."""

from __future__ import annotations

import json
import os
import re
import subprocess
import sys
import threading
import time
from collections import Counter
from pathlib import Path

import pytest
from support.paths import ROOT
from support.servers import wait_until

from server.runtime.backlog import Backlog
from server.runtime.log_pipe import LONGEST_LINE, dropped_lines, log_pipe

LENGTH = 5_000  # of a long line
LINES = 20_000  # far more than pipe and backlog hold
# Each writes `LINES` lines `KIND number` to standard error by its own way.
WRITERS = {
    "log": "for k in range(LINES): logging.getLogger('server').warning('log %d', k)",
    "print": "for k in range(LINES): print('print', k, REST, file=sys.stderr)",
    "descriptor": "for k in range(LINES): os.write(2, f'descriptor {k} {REST}\\n'.encode())",
    "warning": "for k in range(LINES): warnings.warn(f'warning {k}', stacklevel=1)",
    "native": (
        "libc = ctypes.CDLL(None); out = ctypes.c_void_p.in_dll(libc, 'stderr')\n"
        "for k in range(LINES): libc.fprintf(out, b'native %d %s\\n', k, REST.encode())"
    ),
    "thread": (
        "def fail(k): raise ValueError(f'thread {k}')\n"
        "for k in range(LINES // 10):\n"
        "    t = threading.Thread(target=fail, args=(k,)); t.start(); t.join()"
    ),
    "faulthandler": "for k in range(LINES): faulthandler.dump_traceback(all_threads=False)",
    "child": (
        'code = \'import sys\\nfor k in range(%d): print("child", k, "%s", file=sys.stderr)\' % (LINES, REST)\n'
        "subprocess.run([sys.executable, '-c', code], check=True)"
    ),
}
PROGRAM = """
import ctypes, faulthandler, logging, os, subprocess, sys, threading, time, warnings
from server.runtime import logs
from server.runtime.log_pipe import dropped_lines, log_pipe
LINES, REST = {lines}, "x" * 60
warnings.simplefilter("always")
with log_pipe():
    logs.configure("debug")
    {writer}
    print("written", flush=True)
    if sys.stdin.readline():  # the reader is back
        while sys.stdin.readline() != "end\\n":
            print("later", file=sys.stderr)
        print(dropped_lines(), flush=True)
print("over", flush=True)
"""


def start(writer: str, **options: int) -> subprocess.Popen[str]:
    program = PROGRAM.format(writer=writer.replace("\n", "\n    "), lines=LINES)
    pipes = {"stdin": subprocess.PIPE, "stdout": subprocess.PIPE, "stderr": subprocess.PIPE} | options
    return subprocess.Popen([sys.executable, "-c", program], cwd=ROOT, text=True, **pipes)  # type: ignore[call-overload, no-any-return]


def numbers_of(kind: str, lines: list[str]) -> list[int]:
    """The numbers of the lines that were written, in the order in which they arrived."""
    return [int(number) for line in lines for number in re.findall(rf"{kind} (\d+)\b", line)]


@pytest.mark.parametrize("kind", WRITERS)
def test_who_writes_to_an_unread_stderr_goes_on(kind: str) -> None:
    with start(WRITERS[kind]) as process:
        assert process.stdin is not None
        assert process.stdout is not None
        assert process.stderr is not None
        watchdog = threading.Timer(60, process.kill)
        watchdog.start()
        assert process.stdout.readline() == "written\n", "it waits for the reader"
        lines: list[str] = []
        reader = threading.Thread(target=lambda: lines.extend(process.stderr or ()))
        reader.start()
        process.stdin.write("go on\n")
        process.stdin.flush()
        wait_until(lambda: any("were dropped" in line for line in lines))
        process.stdin.write("say\nend\n")
        process.stdin.flush()
        dropped = int(process.stdout.readline())
        assert process.stdout.readline() == "over\n"
        reader.join(20)
        watchdog.cancel()
    notices = [json.loads(line) for line in lines if "were dropped" in line]
    assert sum(notice["dropped"] for notice in notices) == dropped > 0
    assert "later\n" in lines[lines.index(next(line for line in lines if "were dropped" in line)) :]
    if kind in ("log", "print", "descriptor", "native", "child"):
        numbers = numbers_of(kind, lines)
        assert numbers[:1000] == list(range(1000))
        assert numbers == sorted(numbers)
        assert len(numbers) + dropped == LINES


@pytest.mark.parametrize("kind", ["log", "print", "descriptor", "native", "child"])
def test_nothing_is_lost_while_somebody_reads(kind: str) -> None:
    writer = WRITERS[kind].replace("range(LINES)", "range(700)").replace("LINES, REST", "700, REST")
    done = subprocess.run(
        [sys.executable, "-c", PROGRAM.format(writer=writer.replace("\n", "\n    "), lines=LINES)],
        cwd=ROOT, text=True, capture_output=True, input="", timeout=60,
    )  # fmt: skip
    assert done.stdout == "written\nover\n"
    numbers = numbers_of(kind, done.stderr.splitlines())
    assert numbers == list(range(700))


def test_the_end_waits_for_a_reader_only_so_long() -> None:
    with start(WRITERS["log"]) as process:
        assert process.stdin is not None
        process.stdin.close()
        watchdog = threading.Timer(60, process.kill)
        watchdog.start()
        assert process.wait() == 0
        watchdog.cancel()
        assert process.stdout is not None
        assert process.stdout.read() == "written\nover\n"


@pytest.mark.parametrize("kind", WRITERS)
def test_closed_stderr_neither_kills_nor_fills_anything(kind: str) -> None:
    reading, writing = os.pipe()
    os.close(reading)
    with start(WRITERS[kind], stderr=writing) as process:
        os.close(writing)
        said, _ = process.communicate("go on\nend\n", timeout=60)
    assert process.returncode == 0
    written, dropped, over = said.splitlines()
    assert (written, over) == ("written", "over")
    assert int(dropped) >= LINES // 10


def test_a_process_without_stderr_can_write_to_it(tmp_path: Path) -> None:
    program = PROGRAM.format(writer=WRITERS["print"], lines=LINES)
    (tmp_path / "program.py").write_text(program)
    done = subprocess.run(
        ["sh", "-c", f"exec {sys.executable} {tmp_path / 'program.py'} 2>&-"],
        cwd=ROOT, env=os.environ | {"PYTHONPATH": str(ROOT)}, text=True, stdout=subprocess.PIPE, input="",
        timeout=60,
    )  # fmt: skip
    assert (done.returncode, done.stdout) == (0, "written\nover\n")


def test_a_crash_leaves_its_stack() -> None:
    program = (
        "import faulthandler\n"
        "from server.runtime.log_pipe import log_pipe\n"
        "with log_pipe(): faulthandler._sigsegv()"
    )
    command = [sys.executable, "-X", "faulthandler", "-c", program]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, timeout=60)
    assert done.returncode < 0
    assert "Segmentation fault" in done.stderr


def test_a_line_that_a_full_disk_has_cut_stands_alone(tmp_path: Path) -> None:
    log, line = tmp_path / "log", "x" * 99
    program = f"""
import resource, sys, time
from server.runtime.log_pipe import dropped_lines, log_pipe
with log_pipe():
    resource.setrlimit(resource.RLIMIT_FSIZE, (250, -1))
    for _ in range(10): print("{line}", file=sys.stderr)
    while dropped_lines() < 8: time.sleep(0.001)
    resource.setrlimit(resource.RLIMIT_FSIZE, (-1, -1))
    for _ in range(2): print("{line}", file=sys.stderr)
"""
    with log.open("w") as file:
        subprocess.run([sys.executable, "-c", program], cwd=ROOT, stderr=file, check=True, timeout=60)
    before, cut, notice, after = (
        log.read_text().splitlines()[part] for part in (slice(2), 2, 3, slice(4, None))
    )
    assert (before, cut, after) == ([line] * 2, line[:50], [line] * 2)
    assert json.loads(notice)["dropped"] == 8


def test_stderr_is_as_before_afterwards(capfd: pytest.CaptureFixture[str]) -> None:
    before = os.fstat(2)
    open_files = len(os.listdir("/dev/fd"))
    for _ in range(3):
        with log_pipe():
            assert os.fstat(2) != before
            os.write(2, b"half a line")
        assert (os.fstat(2).st_dev, os.fstat(2).st_ino) == (before.st_dev, before.st_ino)
        assert dropped_lines() == 0
    assert len(os.listdir("/dev/fd")) == open_files
    assert capfd.readouterr().err == "half a line\n" * 3


def test_lines_of_many_writers_are_whole(capfd: pytest.CaptureFixture[str]) -> None:
    def write(name: str) -> None:
        for _ in range(20):
            os.write(2, (name * LENGTH + "\n").encode())
            time.sleep(0.0005)

    threads = [threading.Thread(target=write, args=(name,)) for name in "abcd"]
    with log_pipe():
        for each in threads:
            each.start()
        for each in threads:
            each.join()
        os.write(2, b"y" * LONGEST_LINE + b"y" * LONGEST_LINE + b"\nlast\n")
        wait_until(lambda: dropped_lines() == 1)
    lines = capfd.readouterr().err.splitlines()
    assert json.loads(lines.pop(-2))["dropped"] == 1
    assert lines.pop() == "last"
    assert Counter(lines) == Counter(name * LENGTH for name in "abcd" for _ in range(20))


def test_a_backlog_has_one_gap_and_tells_it_once() -> None:
    backlog = Backlog(100)
    for k in range(20):
        backlog.put(b"%09d\n" % k)
    assert backlog.dropped == 10
    taken = [backlog.take() for _ in range(5)]
    backlog.put(b"too early\n")  # there is room, but the gap goes on until the backlog is empty
    taken += [backlog.take() for _ in range(5)]
    assert taken == [(b"%09d\n" % k, 0) for k in range(10)]
    assert backlog.take() == (b"", 11)
    backlog.told(11)
    backlog.put(b"next\n")
    assert backlog.take() == (b"next\n", 0)
    backlog.end()
    assert backlog.take() is None


def test_a_line_that_cannot_be_written_counts_as_dropped() -> None:
    backlog = Backlog(100)
    backlog.put(b"one\n")
    backlog.put(b"two\n")
    assert backlog.take() == (b"one\n", 0)
    backlog.lose()
    assert backlog.take() == (b"two\n", 1)  # told before the next line, not in a loop of its own
    backlog.told(1)
    backlog.put(b"x" * 200)  # larger than the backlog ever is
    assert backlog.take() == (b"", 1)
    assert backlog.dropped == 2
