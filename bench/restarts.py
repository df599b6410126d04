"""`python -m bench.restarts BUNDLE --json F`: how long a server is not ready after its engine or its template is lost.

The engine is killed again and again, each time as soon as its successor is ready. Then the template is killed, from
which engines are forked. At last both are killed at the same time, so that a new engine has to wait for the imports of
a new template. A figure is the time until `/health/ready` answers 200 from a new engine; for the template alone, the
longest time without such an answer in the ten seconds that follow.
"""

from __future__ import annotations

import json
import os
import time
import urllib.error
import urllib.request
from typing import Annotated, Any

import psutil
import typer
from rich.console import Console

from training.cli.common.command import run_command
from training.cli.common.paths import BundlePath, JsonFile
from training.outputs import write_json
from training.run.server_process import ServerProcess
from training.settings import MOST

POLL = 0.005  # seconds between two questions
WATCHED = 10.0  # seconds after the loss of the template


def main(
    bundle: BundlePath,
    json_file: JsonFile = None,
    kills: Annotated[int, typer.Option(min=1, max=MOST, help="kills of the engine in a row")] = 8,
) -> None:
    os.environ.setdefault("GEMS_THREADS", "1")
    with ServerProcess(bundle) as server:
        figures: dict[str, Any] = {"engine_seconds": [replaced(server, engine(server)) for _ in range(kills)]}
        lost = engine(server)
        template(server).kill()
        figures["template_seconds"] = away(server, WATCHED)
        template(server).kill()
        figures["both_seconds"] = replaced(server, lost)
    Console().print_json(json.dumps(figures))
    if json_file is not None:
        write_json(json_file, figures)


def template(server: ServerProcess) -> psutil.Process:
    """Return the newest process from which engines are forked."""
    children = psutil.Process(server.process.pid).children()
    found: psutil.Process = max(
        (each for each in children if "forkserver" in " ".join(each.cmdline())),
        key=psutil.Process.create_time,
    )
    return found


def engine(server: ServerProcess) -> psutil.Process:
    """Return the newest engine, which is a fork of a template."""
    found: psutil.Process = max(template(server).children(), key=psutil.Process.create_time)
    return found


def replaced(server: ServerProcess, process: psutil.Process) -> float:
    """Kill an engine. Return the seconds until another is ready."""
    process.kill()
    began = time.perf_counter()
    while ready(server):  # the loss is noticed
        time.sleep(POLL)
    while not ready(server):
        time.sleep(POLL)
    return round(time.perf_counter() - began, 3)


def away(server: ServerProcess, seconds: float) -> float:
    """Return the longest time without readiness, from now until it is ready after `seconds`."""
    began = last = time.perf_counter()
    longest = 0.0
    while last - began < seconds:
        if ready(server):
            now = time.perf_counter()
            longest, last = max(longest, now - last), now
        time.sleep(POLL)
    return round(longest, 3)


def ready(server: ServerProcess) -> bool:
    try:
        with urllib.request.urlopen(f"{server.url}/health/ready", timeout=60):
            return True
    except urllib.error.HTTPError:
        return False


if __name__ == "__main__":
    run_command(main, "bench.restarts")
