"""Commands of `gems data` for published logs, with the filters of papers as switches."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer
from rich.console import Console

from training.cli.common.numbers import Seed
from training.cli.common.paths import output_folder
from training.cli.datasets.saving import save_data_set
from training.data.sources.filters import (
    AmazonQueries,
    CatalogueOf,
    Filters,
    JDsearchSignal,
    KuaiSARSignal,
    QilinSignal,
)
from training.settings import MOST

if TYPE_CHECKING:
    from training.data.dataset import DataSet

Source = Annotated[Path, typer.Option(help="Folder of the published files.")]
Out = Annotated[Path, typer.Option(help="Folder of the new data set.", callback=output_folder)]
Both = Annotated[
    bool, typer.Option("--both-behaviours", help="Keep only people with searches and recommendations.")
]
Core = Annotated[
    int,
    typer.Option(
        min=0, max=MOST, help="Drop people and items with fewer interactions, until there are none."
    ),
]
Newest = Annotated[
    int, typer.Option(min=0, max=MOST, help="Newest interactions to keep of each person; 0: all.")
]
Users = Annotated[int, typer.Option(min=0, max=MOST, help="People to draw, by --seed; 0: all.")]
Deduplicate = Annotated[
    bool, typer.Option("--deduplicate", help="Leave out interactions that repeat an earlier one.")
]
Items = Annotated[
    CatalogueOf,
    typer.Option("--catalogue", help="Items: those chosen, also those shown to the people kept, or all."),
]
Force = Annotated[bool, typer.Option("--force", help="Replace a data set that is already there.")]


def qilin_command(
    source: Source,
    out: Out,
    signal: Annotated[QilinSignal, typer.Option(help="What counts as a choice.")] = "click",
    both_behaviours: Both = False,
    core: Core = 0,
    newest: Newest = 0,
    users: Users = 0,
    seed: Seed = 0,
    deduplicate: Deduplicate = False,
    catalogue: Items = CatalogueOf.CHOSEN,
    force: Force = False,
) -> None:
    """Make a data set of Qilin: searches and recommendations of notes, in Chinese."""
    from training.data.sources.qilin import qilin  # slow imports, not for --help

    filters = Filters(both_behaviours, core, newest, users, seed, deduplicate, catalogue)
    _make(qilin, source, filters, out, force, signal)


def kuaisar_command(
    source: Source,
    out: Out,
    signal: Annotated[
        KuaiSARSignal, typer.Option(help="What counts as a choice of a recommendation.")
    ] = "click",
    both_behaviours: Both = False,
    core: Core = 0,
    newest: Newest = 0,
    users: Users = 0,
    seed: Seed = 0,
    deduplicate: Deduplicate = False,
    catalogue: Items = CatalogueOf.CHOSEN,
    force: Force = False,
) -> None:
    """Make a data set of KuaiSAR: searches and recommendations of short videos, words as numbers."""
    from training.data.sources.kuaisar import kuaisar  # slow imports, not for --help

    filters = Filters(both_behaviours, core, newest, users, seed, deduplicate, catalogue)
    _make(kuaisar, source, filters, out, force, signal)


def jdsearch_command(
    source: Source,
    out: Out,
    signal: Annotated[JDsearchSignal, typer.Option(help="The least that counts as a choice.")] = "click",
    both_behaviours: Both = False,
    core: Core = 0,
    newest: Newest = 0,
    users: Users = 0,
    seed: Seed = 0,
    deduplicate: Deduplicate = False,
    catalogue: Items = CatalogueOf.CHOSEN,
    force: Force = False,
) -> None:
    """Make a data set of JDsearch: product searches with whole histories, words as numbers."""
    from training.data.sources.jdsearch import jdsearch  # slow imports, not for --help

    filters = Filters(both_behaviours, core, newest, users, seed, deduplicate, catalogue)
    _make(jdsearch, source, filters, out, force, signal)


def amazon_reviews_command(
    source: Source,
    out: Out,
    queries: Annotated[
        AmazonQueries, typer.Option(help="How searches are made: from category paths, or none.")
    ] = "category-paths",
    both_behaviours: Both = False,
    core: Core = 0,
    newest: Newest = 0,
    users: Users = 0,
    seed: Seed = 0,
    deduplicate: Deduplicate = False,
    catalogue: Items = CatalogueOf.CHOSEN,
    force: Force = False,
) -> None:
    """Make a data set of Amazon reviews (2014, 2018 or 2023) of a department, with simulated searches."""
    from training.data.sources.amazon_reviews import amazon_reviews  # slow imports, not for --help

    filters = Filters(both_behaviours, core, newest, users, seed, deduplicate, catalogue)
    _make(amazon_reviews, source, filters, out, force, queries)


def movielens_tags_command(
    source: Source,
    out: Out,
    both_behaviours: Both = False,
    core: Core = 0,
    newest: Newest = 0,
    users: Users = 0,
    seed: Seed = 0,
    deduplicate: Deduplicate = False,
    catalogue: Items = CatalogueOf.CHOSEN,
    force: Force = False,
) -> None:
    """Make a data set of MovieLens whose searches are the tags that people gave films."""
    from training.data.sources.movielens_tags import movielens_tags  # slow imports, not for --help

    filters = Filters(both_behaviours, core, newest, users, seed, deduplicate, catalogue)
    _make(movielens_tags, source, filters, out, force)


LOGS: dict[str, Callable[..., None]] = {
    "qilin": qilin_command,
    "kuaisar": kuaisar_command,
    "amazon-reviews": amazon_reviews_command,
    "jdsearch": jdsearch_command,
    "movielens-tags": movielens_tags_command,
}


def _make(
    read: Callable[..., DataSet], source: Path, filters: Filters, out: Path, force: bool, *choice: Any
) -> None:
    from training.data.dataset import check_writable  # slow imports, not for --help

    check_writable(out, force)
    with Console().status(f"reading {source}"):
        dataset = read(source, filters, *choice)
    save_data_set(dataset, out, force)
