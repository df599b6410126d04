"""`gems rank`: the server's answers for all people, or for a file of queries or requests, as one Parquet file."""

from __future__ import annotations

from functools import partial
from pathlib import Path
from typing import Annotated, Any, Literal

import typer
from rich.console import Console

from index.records import parse_json
from training.cli.common.device import DeviceOption
from training.cli.common.numbers import Threads, finite
from training.cli.common.paths import BundlePath, output_file
from training.cli.common.quiet import quiet_libraries
from training.data.id_list import as_known, read_lines
from training.data.schema import is_data_set
from training.errors import UserError
from training.settings import MOST, MOST_BEAMS

MOST_ITEMS = 10_000
MOST_WORKERS = 1024
SOURCES = "--data with --all or --users, --queries, or --requests"


def rank_command(
    bundle: BundlePath,
    out: Annotated[Path, typer.Option(help="Parquet file to write", callback=output_file)],
    data: Annotated[
        Path | None, typer.Option(help="folder of a data set, whose people are ranked for")
    ] = None,
    everyone: Annotated[bool, typer.Option("--all", help="with --data: everyone")] = False,
    users: Annotated[
        Path | None, typer.Option(help="with --data: these people; text file, one user_id a line")
    ] = None,
    queries: Annotated[
        Path | None,
        typer.Option(
            help="search these, without a history; text file, one a line, or .jsonl, .csv or .parquet ('query')"
        ),
    ] = None,
    requests: Annotated[
        Path | None,
        typer.Option(help="bodies of /v1/recommend and /v1/search, each with an 'id'; .jsonl or .parquet"),
    ] = None,
    task: Annotated[
        Literal["search", "recommendation"] | None,
        typer.Option(help="of the requests that do not name theirs"),
    ] = None,
    limit: Annotated[
        int | None,
        typer.Option(min=1, max=MOST_ITEMS, help="items of an answer (default: GEMS_DEFAULT_LIMIT)"),
    ] = None,
    beam_width: Annotated[
        int | None,
        typer.Option(min=1, max=MOST_BEAMS, help="hypotheses kept per level (default: as the server's)"),
    ] = None,
    exclude_history: Annotated[
        bool | None,
        typer.Option(
            "--exclude-history/--no-exclude-history",
            help="leave out every item of the history (default: for recommendations, not for searches)",
        ),
    ] = None,
    filter_: Annotated[
        str | None, typer.Option("--filter", help="rank only items that match; JSON as in a request")
    ] = None,
    exclude: Annotated[
        Path | None, typer.Option(help="leave out these items; text file, one item_id a line")
    ] = None,
    candidates: Annotated[
        Path | None, typer.Option(help="rank only these items; text file, one item_id a line")
    ] = None,
    ranking: Annotated[
        Literal["pool", "beam"] | None, typer.Option(help="as in a request (default: what the bundle has)")
    ] = None,
    min_relevance: Annotated[
        float | None,
        typer.Option(min=0, max=1, callback=finite, help="leave out items that are less probably taken"),
    ] = None,
    fallback: Annotated[
        Literal["none", "popularity"] | None,
        typer.Option(help="for people without a known item (default: GEMS_FALLBACK)"),
    ] = None,
    missing_ok: Annotated[
        bool, typer.Option("--missing-ok", help="pass over unknown people in --users")
    ] = False,
    skip_bad: Annotated[
        bool, typer.Option("--skip-bad", help="rank the good rows of --queries and --requests, count the bad")
    ] = False,
    resume: Annotated[
        bool, typer.Option("--resume", help="go on with a ranking that was not finished")
    ] = False,
    workers: Annotated[
        int, typer.Option(min=1, max=MOST_WORKERS, help="processes that rank, each with the model in memory")
    ] = 1,
    ray: Annotated[
        str | None,
        typer.Option(
            help="a Ray cluster whose machines rank, by address ('auto': this machine's); each holds the bundle "
            "under the same path"
        ),
    ] = None,
    threads: Threads = None,
    device: DeviceOption = "auto",
    batch_size: Annotated[int, typer.Option(min=1, max=MOST, help="requests that are ranked together")] = 32,
    save_seconds: Annotated[
        float, typer.Option(min=0.01, max=MOST, callback=finite, help="seconds of work that a kill may cost")
    ] = 10.0,
) -> None:
    """Rank for many at once, without a server: the answers are those of a server with the same settings.

    Server settings of the environment (GEMS_DEFAULT_LIMIT, GEMS_PRECISION, …) hold here, too.
    """
    # slow imports, not for --help
    from index.sequence.events import Task
    from training.bulk.entry import Entry
    from training.bulk.people import read_people
    from training.bulk.queries import Queries
    from training.bulk.rank import ReadSource, rank
    from training.bulk.requests import Requests
    from training.bulk.summary import print_outcome

    quiet_libraries()
    _check_sources(data, everyone, users, queries, requests, task)
    fields: dict[str, Any] = {
        "limit": limit,
        "beam_width": beam_width,
        "exclude_history": exclude_history,
        "filter": _filter(filter_),
        "exclude": _item_ids(exclude),
        "candidates": _item_ids(candidates),
        "ranking": ranking,
        "min_relevance": min_relevance,
        "fallback": fallback,
    }
    fields = {name: value for name, value in fields.items() if value is not None}
    of_rows = None if task is None else Task(task)
    console = Console()
    probed = Task.SEARCH if queries or of_rows is Task.SEARCH else Task.RECOMMENDATION
    probe = Entry("", probed, {**fields, **({"query": "words"} if probed is Task.SEARCH else {})})
    read: ReadSource
    if data is not None:
        read = partial(read_people, data, users, fields, missing_ok=missing_ok)
    elif queries is not None:
        read = partial(Queries.read, queries, fields, skip_bad=skip_bad)
    else:
        assert requests is not None
        read = partial(Requests.read, requests, of_rows, fields, skip_bad=skip_bad)
    outcome = rank(
        bundle,
        out,
        read,
        probe,
        fields={**fields, "task": task},
        batch=batch_size,
        workers=workers,
        threads=threads,
        device=device,
        save_seconds=save_seconds,
        resume=resume,
        ray=ray,
        console=console,
    )
    print_outcome(outcome, out, console)


def _check_sources(
    data: Path | None,
    everyone: bool,
    users: Path | None,
    queries: Path | None,
    requests: Path | None,
    task: str | None,
) -> None:
    """Raise `UserError` unless the options name one source, and what belongs to it."""
    if data is not None and not is_data_set(data):
        from training.data.dataset import DataSet

        DataSet.load(data)  # raises, and says what is there
    if data is None and (everyone or users is not None):
        raise UserError("--all and --users are people of a data set: give --data")
    if sum(each is not None for each in (data, queries, requests)) != 1:
        raise UserError(f"name what to rank for, one of: {SOURCES}")
    if data is not None and everyone == (users is not None):
        raise UserError(f"say for whom of {data}: --all for everyone, or --users FILE")
    if data is not None and task == "search":
        raise UserError("a search needs a query: give --queries, or --requests with histories and queries")
    if queries is not None and task == "recommendation":
        raise UserError("--queries are searched; --task recommendation does not fit")


def _filter(text: str | None) -> Any:
    """Return the filter of a request. Raises `UserError` for what is no JSON object."""
    if text is None:
        return None
    try:
        asked = parse_json(text)
    except ValueError as error:
        raise UserError(f'--filter must be JSON such as \'{{"categories": "Drama"}}\': {error}') from error
    if not isinstance(asked, dict):
        raise UserError('--filter must be a JSON object such as \'{"categories": "Drama"}\'')
    return asked


def _item_ids(path: Path | None) -> list[str] | None:
    """Return the item ids in a file; a header is understood. Raises `UserError` if there is none, or too many."""
    if path is None:
        return None
    found = as_known(read_lines(path, "item ids, one a line"), lambda _: False, "item_id")
    if not 1 <= len(found) <= MOST_ITEMS:
        raise UserError(f"{path} must name 1 to {MOST_ITEMS:,} items, it names {len(found):,}")
    return found
