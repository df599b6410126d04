"""`gems report`: a run as one HTML page."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer
from rich.console import Console

from training.cli.common.paths import output_file


def report_command(
    run: Annotated[Path, typer.Argument(help="folder of a run, finished or still training")],
    out: Annotated[
        Path | None, typer.Option(help="file to write (default: RUN/report.html)", callback=output_file)
    ] = None,
    baseline: Annotated[Path | None, typer.Option(help="folder of another run, to compare with")] = None,
) -> None:
    """Write a page about a run: its curves, the conflict of the tasks, cost and evaluation."""
    from training.report.page import write_report

    out = out or run / "report.html"
    write_report(run, out, baseline)
    Console().print(f"report: {out}", soft_wrap=True, highlight=False, markup=False)
