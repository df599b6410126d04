"""`gems preservation`: comparison of a trained model with its backbone."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer
from rich.console import Console

from training.cli.common.quiet import quiet_libraries


def preservation_command(
    run: Annotated[Path, typer.Argument(help="folder of a finished run")],
    data: Annotated[Path, typer.Option(help="folder of the data set it was trained on")],
    text_tokens: Annotated[int, typer.Option(min=2, help="tokens of general text")] = 16384,
    window: Annotated[int, typer.Option(min=2, help="tokens that are read together")] = 256,
    cases: Annotated[int, typer.Option(min=1, help="at most this many test cases")] = 500,
    beam_width: Annotated[int, typer.Option(min=1, help="hypotheses kept per level")] = 20,
    exclude_history: Annotated[bool, typer.Option(help="never rank items of the history")] = False,
    threads: Annotated[int | None, typer.Option(min=1, help="CPU threads (default: all cores)")] = None,
    json_file: Annotated[
        Path | None,
        typer.Option("--json", help="write the figures to this file (default: RUN/preservation.json)"),
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
        console=console,
    )
    print_preservation(result, console)
    target = json_file or run / "preservation.json"
    save_preservation(result, target)
    console.print(f"figures: {target}", highlight=False)
