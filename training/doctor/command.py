"""`gems doctor`: its command."""

from __future__ import annotations

import typer
from rich.console import Console

from training.cli.common.paths import JsonFile
from training.cli.common.quiet import quiet_libraries
from training.outputs import write_json


def doctor_command(json_file: JsonFile = None) -> None:
    """Say what this machine can do, and compare tiny trainings and rankings on each device with float64.

    Takes half a minute, and reads nothing from outside. The exit code is 1 if a check fails.
    """
    from training.doctor.doctor import examine, print_findings  # slow imports, not for --help

    quiet_libraries()
    console = Console()
    with console.status("looking around") as status:
        found = examine(status.update)
    print_findings(found, console)
    if json_file is not None:
        write_json(json_file, found)
    if found["broken"]:
        raise typer.Exit(1)
