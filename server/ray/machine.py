"""A fleet on one machine: a Ray of its own, which starts and ends with this process."""

from __future__ import annotations

import logging
import math
import os
import shutil
import signal
import sys
import tempfile
import threading
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

import psutil
import ray
from ray import serve
from ray.serve.handle import DeploymentHandle

from index.bundle.bundle import Bundle
from index.bundle.manifest import BundleError
from server.ray.application import QUIET, Fleet, application, cores
from server.runtime import logs
from server.settings import Settings

logger = logging.getLogger("server.ray.machine")

EXIT_REFUSED = 2
NAME = "gems"
SIGNALS = (signal.SIGINT, signal.SIGTERM)
STORE_BYTES = 100 << 20  # of Ray's object store; requests and answers hardly use it
END_SECONDS = 3.0  # for Ray's processes to end by themselves


class FleetError(Exception):
    """The servers do not start; the message holds Ray's reason."""


def serve_until_signal(path: Path, settings: Settings, fleet: Fleet) -> int:
    """Serve a bundle until SIGINT or SIGTERM; return the exit code. Call it on the main thread.

    On a signal `/health/ready` answers 503 at once, while other requests are still answered, for `drain_seconds`. Then
    every server finishes what it has. A second signal skips the wait. One that comes while the servers start is obeyed
    when they are there; one that comes while Ray itself starts ends it, with another exit code.
    """
    logs.configure(settings.log_level)
    logging.getLogger("ray").setLevel(logging.WARNING)
    signalled = threading.Event()
    for kind in SIGNALS:
        signal.signal(kind, lambda *_: signalled.set())
    try:
        Bundle.open(path)  # a damaged one shows here, not after Ray has started and tried three times
        with running(path, settings, fleet) as front:
            logger.info("ready", extra={"url": f"http://{settings.host}:{settings.port}"})
            signalled.wait()
            signalled.clear()
            front.broadcast("drain").results(timeout_s=settings.shutdown_seconds)
            signalled.wait(settings.drain_seconds)
    except (BundleError, FleetError) as error:
        sys.stderr.write(f"error: {' '.join(str(error).split())}\n")
        return EXIT_REFUSED
    logger.info("stopped")
    return 0


@contextmanager
def running(path: Path, settings: Settings, fleet: Fleet) -> Iterator[DeploymentHandle]:
    """Serve a bundle at the host and the port of the settings for the block, which gets the fronts.

    Nothing of Ray is left afterwards, neither processes nor files. Signals are handled as before. Call it on the main
    thread. Raises `FleetError` if the servers do not start.
    """
    handlers = {kind: signal.getsignal(kind) for kind in SIGNALS}
    folder = Path(tempfile.mkdtemp(prefix="gems-ray-"))  # a short name: Ray keeps sockets in it
    try:
        ray.init(
            address="local",
            # Ray only counts cores: more servers than cores are slow, not impossible. Twice as many: for a new version.
            num_cpus=max(os.cpu_count() or 1, 2 * fleet.largest * cores(settings)),
            object_store_memory=STORE_BYTES,
            include_dashboard=False,
            logging_level=logging.WARNING,
            _temp_dir=str(folder),
        )
        for kind, handler in handlers.items():
            signal.signal(kind, handler)  # Ray has put its own in place of that of SIGTERM
        listening = {
            "host": settings.host,
            "port": settings.port,
            "keep_alive_timeout_s": math.ceil(settings.idle_seconds),
        }
        serve.start(proxy_location="HeadOnly", http_options=listening, logging_config=QUIET)
        try:
            front = serve.run(application(path, settings, fleet), name=NAME, route_prefix="/")
        except RuntimeError as error:
            raise FleetError(f"the servers do not start: {error}") from error
        yield front
    finally:
        serve.shutdown()
        ray.shutdown()
        # Agents that were only starting do not notice the end of their node.
        _, left = psutil.wait_procs(_of_ray(folder), END_SECONDS)
        for each in left:
            with suppress(psutil.NoSuchProcess):
                each.kill()
        shutil.rmtree(folder, ignore_errors=True)


def _of_ray(folder: Path) -> list[psutil.Process]:
    """Return the processes that live of the Ray that keeps its files in a folder."""
    found = []
    for each in psutil.process_iter():
        with suppress(psutil.Error):  # it has just ended, or is another user's
            line = " ".join(each.cmdline())
            logs_there = line.startswith("ray::") and any(
                f.path.startswith(str(folder)) for f in each.open_files()
            )
            if logs_there or str(folder) in line:
                found.append(each)
    return found
