"""`gems data`: make and show data sets."""

from __future__ import annotations

import os
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Annotated, Literal

import typer
from rich.console import Console

from training.cli.common.bad_rows import BadRowsFile, reported
from training.cli.common.numbers import finite
from training.cli.common.paths import output_file, output_folder
from training.cli.common.people_store import export_events, name_of_store
from training.cli.datasets.logs import LOGS
from training.cli.datasets.saving import save_data_set
from training.data.schema import DataError

MOST_DAYS = 36_500

data_app = typer.Typer(no_args_is_help=True, help="Make data sets and look into them.")
for name, command in LOGS.items():
    data_app.command(name)(command)

Out = Annotated[Path, typer.Option(help="Folder of the new data set.", callback=output_folder)]
Days = Annotated[
    float,
    typer.Option(
        min=0,
        max=MOST_DAYS,
        callback=finite,
        envvar="GEMS_PEOPLE_DAYS",
        help="Leave out events of a store that are older; 0: none.",
    ),
]
Force = Annotated[bool, typer.Option("--force", help="Replace a data set that is already there.")]


@data_app.command("movielens")
def movielens_command(out: Out, force: Force = False) -> None:
    """Make a data set of MovieLens from the `movielens` asset, with simulated searches."""
    from training.data.dataset import check_writable  # slow imports, not for --help
    from training.data.sources.movielens import movielens

    check_writable(out, force)
    with Console().status("reading MovieLens"):
        dataset = movielens()
    save_data_set(dataset, out, force)


@data_app.command("amazon-beauty")
def amazon_beauty_command(
    source: Annotated[Path, typer.Option(help="Folder with the normalised items.jsonl and users.jsonl.")],
    out: Out,
    behaviour: Annotated[
        Literal["both", "recommendation"],
        typer.Option(help="Whether half of the interactions count as searches, or none."),
    ] = "both",
    force: Force = False,
) -> None:
    """Make a data set of Amazon Beauty 5-core (2014), with simulated searches; for measurements only."""
    from training.data.dataset import check_writable
    from training.data.sources.amazon_beauty import Behaviour, amazon_beauty

    check_writable(out, force)
    save_data_set(amazon_beauty(source, Behaviour(behaviour)), out, force)


@data_app.command("import")
def import_command(
    items: Annotated[Path, typer.Option(help="Items, .jsonl, .csv or .parquet (.gz, .zst).")],
    out: Out,
    interactions: Annotated[
        Path | None, typer.Option(help="Interactions, .jsonl, .csv or .parquet (.gz, .zst).")
    ] = None,
    events: Annotated[
        str | None,
        typer.Option(help="What a server remembers, in place of interactions: its GEMS_PEOPLE_STORE."),
    ] = None,
    days: Days = 0,
    name: Annotated[str | None, typer.Option(help="Name of the data set; else that of the folder.")] = None,
    skip_bad: Annotated[bool, typer.Option("--skip-bad", help="Keep the good rows, count the bad.")] = False,
    infer: Annotated[
        bool, typer.Option("--infer", help="Read attributes that hold numbers or truth values as text.")
    ] = False,
    deduplicate: Annotated[
        bool, typer.Option("--deduplicate", help="Leave out interactions that repeat an earlier one.")
    ] = False,
    bad_rows: BadRowsFile = None,
    force: Force = False,
) -> None:
    """Import your own files. Bad rows are reported with file, line and reason, the first 20 of each kind."""
    from training.data.dataset import check_writable
    from training.data.importing.files import kind_of
    from training.data.importing.importer import import_files

    check_writable(out, force)
    kind_of(items)  # before a long export
    if (interactions is None) == (events is None):
        raise DataError("give --interactions, a file, or --events, a store of people, and not both")
    with reported(bad_rows) as report, _log(interactions, events, days, out) as (log, called):
        dataset, bad = import_files(
            items,
            log,
            name or out.resolve().name,
            skip_bad,
            infer=infer,
            deduplicate=deduplicate,
            called=called,
        )
        report(bad)
    save_data_set(dataset, out, force)


@data_app.command("events")
def events_command(
    store: Annotated[
        str, typer.Argument(help="GEMS_PEOPLE_STORE of the server: a file, or the address of Redis.")
    ],
    out: Annotated[
        Path,
        typer.Option(help="File of interactions to write, .jsonl, for the import.", callback=output_file),
    ],
    days: Days = 0,
) -> None:
    """Export what a server remembers of people as interactions. The server may go on meanwhile."""
    export_events(store, out, days)


@data_app.command("describe")
def describe_command(
    folder: Annotated[Path, typer.Argument(help="Folder of a data set.", metavar="DIR")],
) -> None:
    """Show figures of a data set, its simulated parts, and a few histories."""
    from training.data.dataset import DataSet
    from training.data.describe import describe

    describe(DataSet.load(folder), Console())


@contextmanager
def _log(
    interactions: Path | None, events: str | None, days: float, out: Path
) -> Iterator[tuple[Path, Path | None]]:
    """Give the file of interactions, and another name for it if it is the export of a store, which ends with the block.

    out: the new data set. The export lies next to it: they are as large, and as private.
    """
    if events is None:
        assert interactions is not None
        yield interactions, None
        return
    place = Path(os.path.realpath(out)).parent
    place.mkdir(parents=True, exist_ok=True)
    with TemporaryDirectory(
        prefix=f".{out.name}.", suffix=".draft", dir=place
    ) as folder:  # nobody else may read it
        exported = Path(folder) / "events.jsonl"
        export_events(events, exported, days, quiet=True)
        yield exported, name_of_store(events)
