"""`gems serve`: start the server, which does not need the training side."""

from __future__ import annotations

import os
import sys
from pathlib import Path
from typing import Annotated

import typer

from training.run.server_process import SERVER


def serve_command(
    context: typer.Context,
    bundle: Annotated[Path, typer.Argument(help="folder of a published bundle, or of its run")],
) -> None:
    """Serve a bundle over HTTP. Further options go to the server: see 'python -m server --help'."""
    command = [sys.executable, *SERVER, str(bundle), *context.args]
    os.execv(sys.executable, command)
