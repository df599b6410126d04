"""The command line of a fleet on one machine: `python -m server.ray BUNDLE --replicas 2`."""

from __future__ import annotations

import argparse
import os
import sys
from collections.abc import Sequence
from pathlib import Path

from index.bundle.locate import find_bundle
from index.bundle.manifest import BundleError
from server.people.open import check_store
from server.people.store import StoreRefusedError
from server.settings import SettingsError, read_settings
from server.transport import listening

EXIT_REFUSED = 2
RAY = {
    "RAY_USAGE_STATS_ENABLED": "0",  # it would report to its makers
    "RAY_DEDUP_LOGS": "0",
    "RAY_COLOR_PREFIX": "0",
    # Ray's log files hold those of the servers, too, and would otherwise grow to gigabytes.
    "RAY_ROTATION_MAX_BYTES": str(16 << 20),
    "RAY_ROTATION_BACKUP_COUNT": "2",
}


def main(arguments: Sequence[str] | None = None) -> int:
    """Parse the command line and serve until a signal; return the exit code."""
    parser = argparse.ArgumentParser(
        prog="python -m server.ray", description="Serve a bundle by several servers on this machine."
    )
    parser.add_argument(
        "bundle", type=Path, help="folder of a published bundle, or of the run that published it"
    )
    parser.add_argument("--replicas", type=int, default=1, help="servers, or the fewest of them")
    parser.add_argument("--max-replicas", type=int, default=0, help="servers at the highest load")
    parser.add_argument("--fronts", type=int, default=2, help="processes that read the requests")
    parser.add_argument("--routing", default="person", help="person (default), or load")
    parser.add_argument("--host", help="address to listen on (GEMS_HOST)")
    parser.add_argument("--port", type=int, help="port to listen on; 0 for any free one (GEMS_PORT)")
    parser.add_argument("--root-path", help="prefix under which a proxy serves it, as /gems (GEMS_ROOT_PATH)")
    parser.add_argument("--engine", help="torch or vllm (GEMS_ENGINE)")
    parser.add_argument(
        "--threads", type=int, help="CPU threads of the engine of each server; 0 counts as 1 (GEMS_THREADS)"
    )
    given = {name: value for name, value in vars(parser.parse_args(arguments)).items() if value is not None}
    path = given.pop("bundle")
    sizes = {name: given.pop(name) for name in ("replicas", "max_replicas", "fronts", "routing")}
    try:
        settings = read_settings(given)
        bundle = find_bundle(path)
        if settings.people_store:
            check_store(settings.people_store)
        # Ray binds the port itself, in a process of its own: a taken one shows here, before anything is started.
        sockets = listening.bind(settings.host, settings.port)
        port = sockets[0].getsockname()[1]
        for each in sockets:
            each.close()
        for name, value in RAY.items():
            os.environ.setdefault(name, value)  # Ray reads some of them when it is imported
        try:
            from server.ray.application import Fleet  # an extra
            from server.ray.machine import serve_until_signal
        except ModuleNotFoundError as error:
            if error.name != "ray":
                raise
            return _refuse("many servers need Ray: pip install 'gems-sr[ray]'")
        fleet = Fleet(sizes["replicas"], sizes["max_replicas"], sizes["fronts"], sizes["routing"])
    except (SettingsError, BundleError, StoreRefusedError, listening.ListenError) as error:
        return _refuse(str(error))
    return serve_until_signal(bundle, settings.model_copy(update={"port": port}), fleet)


def _refuse(reason: str) -> int:
    sys.stderr.write(f"error: {' '.join(reason.split())}\n")
    return EXIT_REFUSED
