"""Jobs in processes of their own: memory is returned, and a crash ends one job alone."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from types import FrameType
from typing import Any

from index.records import read_json
from training.outputs import write_json
from training.reproduce.job import FAILED, JOB, RESULT, Job, about_of
from training.reproduce.systems import ReproduceError

CHILD = ("-P", "-m", "training.reproduce")  # -P: a folder named like a package of ours is not meant
STOPPED = "stopped; the same command goes on where it was"


@dataclass(frozen=True)
class Outcome:
    """The end of a job: a result, or the reason why there is none.

    folder: folder of the job.
    """

    folder: Path
    result: dict[str, Any] | None = None
    reason: str = ""


def do_job(job: Job, folder: Path) -> Outcome:
    """Do a job in a child process, unless its result is there. A job that failed before is tried again.

    Raises `ReproduceError` if this process is told to stop; the training then makes a checkpoint and ends.
    """
    if (folder / RESULT).exists():
        return _outcome(job, folder)
    (folder / FAILED).unlink(missing_ok=True)
    folder.mkdir(parents=True, exist_ok=True)
    write_json(folder / JOB, job.model_dump(mode="json"))
    with _stoppable():
        process = subprocess.Popen(
            [sys.executable, *CHILD, str(folder)],
            stdin=subprocess.PIPE,
            env=os.environ | {"OMP_NUM_THREADS": str(job.threads)},
        )
        try:
            code = process.wait()
        except KeyboardInterrupt:
            process.send_signal(signal.SIGTERM)
            process.wait()
            raise ReproduceError(STOPPED) from None
        finally:
            assert process.stdin is not None
            process.stdin.close()
    if (folder / RESULT).exists():
        return _outcome(job, folder)
    return Outcome(folder, reason=_reason(folder, code))


def _outcome(job: Job, folder: Path) -> Outcome:
    try:
        result = read_json(folder / RESULT)
    except (OSError, ValueError) as error:
        return Outcome(folder, reason=f"{error}; delete {folder} to make that run again")
    if not isinstance(result, dict) or result.get("job") != about_of(job):
        reason = f"{folder} was made with other settings; delete it to make that run again"
        return Outcome(folder, reason=reason)
    return Outcome(folder, result)


def _reason(folder: Path, code: int) -> str:
    """Return why a job has no result. code: how its process ended."""
    try:
        return str(read_json(folder / FAILED)["reason"])
    except (OSError, ValueError, KeyError, TypeError):
        if code == -signal.SIGKILL:
            return "its process was killed, as a machine does that has no memory left"
        return (
            f"its process was ended by signal {-code}" if code < 0 else f"its process ended with code {code}"
        )


@contextmanager
def _stoppable() -> Iterator[None]:
    """Let SIGTERM interrupt the block as Ctrl-C does. Main thread only."""
    if threading.current_thread() is not threading.main_thread():
        yield
        return

    def interrupt(number: int, frame: FrameType | None) -> None:
        raise KeyboardInterrupt

    before = signal.signal(signal.SIGTERM, interrupt)
    try:
        yield
    finally:
        signal.signal(signal.SIGTERM, before)
