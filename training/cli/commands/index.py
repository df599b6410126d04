"""`gems index`: show and change the items of a bundle, without training; `gems fuse`: weights of its pool's signals."""

from __future__ import annotations

from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer
from rich.console import Console
from rich.table import Table
from rich.text import Text

from training.cli.common.bad_rows import BadRowsFile, reported
from training.cli.common.device import DeviceOption
from training.cli.common.numbers import Seed, Threads, finite
from training.cli.common.paths import BundlePath, JsonFile
from training.cli.common.quiet import quiet_libraries
from training.data.id_list import as_known, read_lines
from training.errors import UserError
from training.outputs import write_json
from training.settings import MOST, split

if TYPE_CHECKING:  # slow import
    from index.bundle.describe import Description

index_app = typer.Typer(no_args_is_help=True, help="Look into the items of a bundle, and change them.")


@index_app.command("update")
def update_command(
    bundle: BundlePath,
    items: Annotated[
        Path | None, typer.Option(help="new and changed items, .jsonl or .parquet, as for `gems data import`")
    ] = None,
    remove: Annotated[Path | None, typer.Option(help="text file, one item_id a line")] = None,
    vectors: Annotated[
        Path | None, typer.Option(help="vectors of the items in --items, where the bundle's came from a file")
    ] = None,
    item_encoder: Annotated[
        str | None, typer.Option(help="where the bundle's encoder is now, if it is not where it was")
    ] = None,
    keep: Annotated[int, typer.Option(min=1, max=MOST, help="newest versions that are not deleted")] = 3,
    skip_bad: Annotated[
        bool, typer.Option("--skip-bad", help="keep the good rows of --items, count the bad")
    ] = False,
    bad_rows: BadRowsFile = None,
    missing_ok: Annotated[
        bool, typer.Option("--missing-ok", help="pass over ids in --remove that the catalogue does not hold")
    ] = False,
    yes: Annotated[bool, typer.Option("--yes", help="also remove more than half of the items")] = False,
) -> None:
    """Add, change and remove items, as a new version of the bundle's index.

    In the file of --remove, blanks and quotes around an id and a header 'item_id' are understood, unless an item has
    such an id. A server uses it after `POST /admin/index/refresh`, or when it starts.
    """
    # slow imports, not for --help
    from index.bundle.bundle import Bundle
    from index.bundle.update import TooManyRemovedError, UnknownItemsError, update_index
    from training.data.importing.items import read_items
    from training.data.item_vectors import new_item_vectors

    quiet_libraries()
    if items is None and remove is None:
        raise UserError("nothing to do: give --items, --remove or both")
    if vectors is not None and items is None:
        raise UserError("--vectors are those of the items in --items, which is missing")
    with reported(bad_rows) as report:
        given, bad = read_items(items, skip_bad) if items is not None else ([], [])
        report(bad)
    lines = read_lines(remove, "item ids, one a line") if remove is not None else []
    opened = Bundle.open(bundle)
    row = opened.index.catalogue.row
    gone = as_known(lines, lambda item_id: row(item_id) is not None, "item_id")
    console = Console()
    embed = new_item_vectors(opened.info, given, vectors, item_encoder)
    try:
        with console.status("updating the index"):
            done = update_index(
                opened, given, gone, embed, keep=keep, missing_ok=missing_ok, most_removed=1.0 if yes else 0.5
            )
    except UnknownItemsError as error:
        raise UserError(f"{error}; correct {remove}, or pass over them with --missing-ok") from error
    except TooManyRemovedError as error:
        raise UserError(f"{error}; look into {remove}, or confirm it with --yes") from error
    console.print(
        f"{bundle} is at {done.version}: {done.added} items added, {done.changed} changed, {done.removed} removed",
        highlight=False,
        soft_wrap=True,
    )
    if done.pruned:
        console.print(f"deleted: {', '.join(done.pruned)}", highlight=False)


@index_app.command("versions")
def versions_command(bundle: BundlePath) -> None:
    """List the versions of the index; the current one is marked, and so are damaged ones."""
    from index.bundle.bundle import INDEX
    from index.bundle.manifest import BundleError
    from index.bundle.versions import Versions

    versions = Versions(bundle / INDEX)
    wrong = None
    try:
        current = versions.current_name()
    except BundleError as error:  # a rollback mends it, and needs to know the names
        current, wrong = "", error
    console = Console()
    for name in versions.names():
        try:
            record = versions.describe(name)
            gone = len(record.removed)
            text = f"{record.created}  {record.items - gone} items, {gone} removed"
        except BundleError as error:
            text = f"damaged: {error}"
        mark = "  <- current" if name == current else ""
        console.print(f"{name}  {text}{mark}", highlight=False, markup=False, soft_wrap=True)
    if wrong is not None:
        raise wrong


@index_app.command("rollback")
def rollback_command(
    bundle: BundlePath, version: Annotated[str, typer.Argument(help="one of `gems index versions`")]
) -> None:
    """Make an older (or newer) version the current one."""
    from index.bundle.update import rollback_index

    rollback_index(bundle, version)
    Console().print(f"{bundle} is at {version}", highlight=False, soft_wrap=True)


@index_app.command("describe")
def describe_command(
    bundle: BundlePath,
    examples: Annotated[int, typer.Option(min=0, max=MOST, help="prefixes whose items are shown")] = 5,
    json_file: JsonFile = None,
) -> None:
    """Show the use of the codes, collisions, the similarity of the items of one prefix, and examples."""
    from index.bundle.bundle import Bundle
    from index.bundle.describe import describe_index

    quiet_libraries()
    opened = Bundle.open(bundle)
    found = {
        task: describe_index(opened.index, opened.info.codebook_sizes, task=task, examples=examples)
        for task in opened.index.tasks
    }
    console = Console()
    for task, each in found.items():
        if len(found) > 1:
            console.print(f"Identifiers of a {task.value}", highlight=False)
        _show_description(each, console)
    if json_file is not None:
        written = [asdict(each) for each in found.values()]
        write_json(json_file, written[0] | ({"search": written[1]} if len(written) > 1 else {}))


def _show_description(found: Description, console: Console) -> None:
    console.print(
        f"{found.items} items, {found.removed} of them removed; {found.collisions} share their identifier",
        highlight=False,
    )
    levels = Table("level", "codes", "used", "perplexity", "most items")
    for number, level in enumerate(found.levels):
        levels.add_row(
            f"{number}", f"{level.codebook}", f"{level.used}", f"{level.perplexity:.1f}", f"{level.largest}"
        )
    prefixes = Table(
        "depth", "prefixes", "items of the largest", "items not alone", "pairs that share a category"
    )
    for each in found.prefixes:
        purity = "" if each.purity is None else f"{each.purity:.1%}"
        prefixes.add_row(f"{each.depth}", f"{each.count}", f"{each.largest}", f"{each.shared}", purity)
    if found.chance is not None:
        prefixes.add_row("0", "1", f"{found.items}", f"{found.items}", f"{found.chance:.1%}")
    for table in (levels, prefixes):
        console.print(table)
    for titles in found.examples:
        console.print(Text(" | ".join(titles)), soft_wrap=True)


def fuse_command(
    bundle: BundlePath,
    data: Annotated[Path, typer.Option(help="folder of the data set it was trained on, or of a newer log")],
    search_attributes: Annotated[
        str | None,
        typer.Option(
            help="attributes whose values are found as a whole, comma-separated (default: as before)"
        ),
    ] = None,
    fresh_share: Annotated[
        float | None,
        typer.Option(
            min=0.001,
            max=0.9,
            callback=finite,
            help="share of items newer than the model among those that people take (default: as before, at first 0.1)",
        ),
    ] = None,
    seed: Seed = 0,
    threads: Threads = None,
    device: DeviceOption = "auto",
) -> None:
    """Fit the weights by which a bundle ranks its pool of candidates, as a new version of its index.

    'gems train' does it at its end. A server uses the new version after `POST /admin/index/refresh`.
    """
    from training.fusion.refit import fuse_bundle  # slow imports, not for --help
    from training.fusion.table import print_fusion

    quiet_libraries()
    console = Console()
    names = None if search_attributes is None else split(search_attributes)
    version, fusion = fuse_bundle(
        bundle,
        data,
        search_attributes=names,
        fresh_share=fresh_share,
        seed=seed,
        threads=threads,
        device=device,
        console=console,
    )
    print_fusion(fusion, console)
    console.print(f"{bundle} is at {version}", highlight=False, soft_wrap=True)
