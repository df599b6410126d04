"""`gems preservation`: comparison of a trained model with its backbone."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer
from rich.console import Console

from training.cli.common.device import DeviceOption
from training.cli.common.numbers import BeamWidth, Threads
from training.cli.common.paths import output_file
from training.cli.common.protocol import ExcludeHistory
from training.cli.common.quiet import quiet_libraries
from training.outputs import check_output
from training.settings import MOST


def preservation_command(
    run: Annotated[Path, typer.Argument(help="folder of a finished run")],
    data: Annotated[Path, typer.Option(help="folder of the data set it was trained on")],
    text_tokens: Annotated[int, typer.Option(min=2, max=MOST, help="tokens of general text")] = 16384,
    window: Annotated[int, typer.Option(min=2, max=1_000_000, help="tokens that are read together")] = 256,
    cases: Annotated[int, typer.Option(min=1, max=MOST, help="at most this many test cases")] = 500,
    beam_width: BeamWidth = 20,
    exclude_history: ExcludeHistory = None,
    threads: Threads = None,
    device: DeviceOption = "auto",
    json_file: Annotated[
        Path | None,
        typer.Option(
            "--json",
            help="write the figures to this file (default: RUN/preservation.json)",
            callback=output_file,
        ),
    ] = None,
) -> None:
    """Compare a trained model with its backbone: on held-out Wikipedia articles, and on the test cases."""
    # slow imports, not for --help
    from training.preservation.preservation import (
        preservation,
        print_preservation,
        save_preservation,
    )

    quiet_libraries()

    target = json_file or run / "preservation.json"
    if run.is_dir():  # else the run is what is wrong
        check_output(target)
    console = Console()
    result = preservation(
        run,
        data,
        text_tokens=text_tokens,
        window=window,
        max_cases=cases,
        beam_width=beam_width,
        exclude_history=exclude_history,
        threads=threads,
        device=device,
        console=console,
    )
    print_preservation(result, console)
    save_preservation(result, target)
    console.print(f"figures: {target}", highlight=False)
