"""Bad rows on the screen, summed up, and all of them in a file."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Annotated

import typer

from training.cli.common.paths import output_file
from training.data.importing.bad_rows import BadRow, BadRowsError, all_of_them, summed_up
from training.outputs import write_text

BadRowsFile = Annotated[
    Path | None,
    typer.Option("--bad-rows", help="write a line for every bad row to this file", callback=output_file),
]


@contextmanager
def reported(file: Path | None) -> Iterator[Callable[[Sequence[BadRow]], None]]:
    """Give a function that reports skipped rows; rows that end the block are written to the file, too."""

    def report(rows: Sequence[BadRow]) -> None:
        if file is not None:
            write_text(file, all_of_them(rows))
        if rows:
            typer.echo(f"{summed_up(rows)}\n{len(rows):,} bad row(s) skipped", err=True)

    try:
        yield report
    except BadRowsError as error:
        if file is not None:
            write_text(file, all_of_them(error.rows))
        raise
