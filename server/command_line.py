"""The command line of the server. Settings come from `GEMS_*` environment variables and from flags.

What can be refused at once is refused before the slow imports of the rest.
"""

from __future__ import annotations

import argparse
import sys
from collections.abc import Sequence
from pathlib import Path

from index.bundle.locate import find_bundle
from index.bundle.manifest import BundleError
from server.engine.process import template
from server.people.open import check_store
from server.people.store import StoreRefusedError
from server.runtime.log_pipe import fill_standard_descriptors, log_pipe
from server.settings import SettingsError, read_settings
from server.transport import listening

EXIT_REFUSED = 2


def main(arguments: Sequence[str] | None = None) -> int:
    """Parse the command line and serve; return the exit code."""
    parser = argparse.ArgumentParser(prog="python -m server", description="Serve a bundle over HTTP.")
    parser.add_argument(
        "bundle", type=Path, help="folder of a published bundle, or of the run that published it"
    )
    parser.add_argument("--host", help="address to listen on (GEMS_HOST)")
    parser.add_argument("--port", type=int, help="port to listen on; 0 for any free one (GEMS_PORT)")
    parser.add_argument("--root-path", help="prefix under which a proxy serves it, as /gems (GEMS_ROOT_PATH)")
    parser.add_argument("--engine", help="torch or vllm (GEMS_ENGINE)")
    parser.add_argument(
        "--threads", type=int, help="CPU threads of the engine; 0 for torch's choice (GEMS_THREADS)"
    )
    fill_standard_descriptors()
    given = {name: value for name, value in vars(parser.parse_args(arguments)).items() if value is not None}
    path = given.pop("bundle")
    try:
        settings = read_settings(given)
        bundle = find_bundle(path)
    except (SettingsError, BundleError) as error:
        return _refuse(str(error))
    try:
        sockets = listening.bind(settings.host, settings.port)
    except listening.ListenError as error:
        return _refuse(str(error))
    try:
        if settings.people_store:
            check_store(settings.people_store)
        with log_pipe():  # before the first other process, which inherits it
            template.begin()
            from server.launch import launch  # slow imports, in parallel with those of the template

            return launch(bundle, settings, sockets)
    except StoreRefusedError as error:
        return _refuse(str(error))
    finally:
        for each in sockets:
            each.close()


def _refuse(reason: str) -> int:
    sys.stderr.write(f"error: {reason}\n")
    return EXIT_REFUSED
