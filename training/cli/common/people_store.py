"""The store of a server's people, as a file that can be imported."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path
from urllib.parse import urlsplit

import typer

from training.errors import UserError


def export_events(store: str, out: Path, days: float, quiet: bool = False) -> None:
    """Write what a server remembers to `out`, as JSON Lines. Ends the command with its code if that fails.

    The store is the server's, and its own program reads it: training knows nothing of it.

    store: GEMS_PEOPLE_STORE of the server, a path or an address.
    days: age from which events are left out; 0: none.
    quiet: whether nothing is said of what was written.
    Raises `UserError` if there is no such file.
    """
    if not _is_address(store) and not Path(store).is_file():
        raise UserError(f"there is no store at {store}; name the file of GEMS_PEOPLE_STORE")
    options = ["--out", str(out), "--days", str(days)]
    program = [sys.executable, "-P", "-m", "server.people", store, *options]
    code = subprocess.run(program, stdout=subprocess.DEVNULL if quiet else None).returncode
    if code:
        raise typer.Exit(code)


def name_of_store(store: str) -> Path:
    """Return how messages and data sets name a store: never with the password of an address."""
    if not _is_address(store):
        return Path(Path(store).name)
    address = urlsplit(store)
    return Path(f"Redis at {address.netloc.rpartition('@')[2]}{address.path}")


def _is_address(store: str) -> bool:
    return "://" in store
