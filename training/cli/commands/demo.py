"""`gems demo`: the whole system on MovieLens."""

from __future__ import annotations

import time
from pathlib import Path
from typing import Annotated

import typer
from rich.console import Console

from training.cli.common.numbers import finite
from training.cli.common.paths import output_folder
from training.cli.common.quiet import quiet_libraries
from training.extras import check_extra
from training.settings import MOST


def demo_command(
    out: Annotated[
        Path, typer.Option(help="folder for data, run and summary.json", callback=output_folder)
    ] = Path("runs/demo"),
    serve: Annotated[bool, typer.Option(help="leave the server running at the end")] = True,
    port: Annotated[
        int, typer.Option(min=0, max=65535, help="port of the server that is left running")
    ] = 8000,
    started: Annotated[
        float | None,
        typer.Option(min=0, max=MOST * 10, callback=finite, help="Unix time at which the set-up began"),
    ] = None,
) -> None:
    """MovieLens → training → bundle → evaluation → a server that answers, in about ten minutes."""
    begin = started or time.time()
    check_extra("serve")  # which the demo needs only after the training
    from training.demo import demo  # slow imports, not for --help

    quiet_libraries()
    demo(out, started=begin, serve=serve, port=port, console=Console())
