"""`gems serve`: start the server, which does not need the training side."""

from __future__ import annotations

import os
import sys
from collections.abc import Sequence
from typing import NoReturn

import typer

from training.run.server_process import SERVER


def become_server(arguments: Sequence[str]) -> NoReturn:
    """Replace this process by the server. arguments: those of `python -m server`."""
    os.execv(sys.executable, [sys.executable, *SERVER, *arguments])


def serve_command(context: typer.Context) -> None:
    """Serve a bundle over HTTP: 'gems serve BUNDLE'. 'gems serve --help' lists the options."""
    become_server(context.args)
