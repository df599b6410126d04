"""`gems bundle`: check a bundle on disk, or fetch one."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer
from rich.console import Console
from rich.table import Table

from training.cli.common.paths import BundlePath, output_bundle
from training.cli.common.quiet import quiet_libraries

bundle_app = typer.Typer(no_args_is_help=True, help="Check a published bundle, or fetch one.")


@bundle_app.command("verify")
def verify_command(bundle: BundlePath) -> None:
    """Check every file against its hash and every index version; show the size of each part."""
    # slow imports, not for --help
    from index.bundle.bundle import INDEX, Bundle
    from index.bundle.manifest import verify
    from index.bundle.sizes import bundle_sizes
    from index.bundle.versions import Versions

    quiet_libraries()
    opened = Bundle.open(bundle)
    versions = Versions(bundle / INDEX)
    for name in versions.names():
        verify(versions.folder / name)
    trie = opened.index.trie
    items = len(opened.index.catalogue)
    table = Table("part", "MB", "bytes an item")
    sizes = bundle_sizes(bundle)
    for part, size in sizes.items():
        table.add_row(part, f"{size / 1e6:.2f}", f"{size / items:.1f}")
        if part == "trie":
            for inner, its in (("tree", trie.node_bytes), ("items of the leaves", trie.item_bytes)):
                table.add_row(f"  {inner}", f"{its / 1e6:.2f}", f"{its / items:.1f}")
    table.add_row("together", f"{sum(sizes.values()) / 1e6:.2f}", f"{sum(sizes.values()) / items:.1f}")
    console = Console()
    console.print(
        f"{bundle} is whole: {opened.info.bundle_id}, index {opened.index.version} of {', '.join(versions.names())}, "
        f"{items} items",
        highlight=False,
        soft_wrap=True,
    )
    console.print(f"SHA-256 {opened.sha256()}", highlight=False, soft_wrap=True)
    console.print(table)


@bundle_app.command("fetch")
def fetch_command(
    source: Annotated[
        str, typer.Argument(help="folder of a bundle, as rclone names it: remote:bucket/folder")
    ],
    out: Annotated[
        Path,
        typer.Argument(help="folder of the bundle here; another bundle is replaced", callback=output_bundle),
    ],
    sha256: Annotated[
        str, typer.Option("--sha256", help="hash of the bundle, as 'gems bundle verify' says it")
    ],
    rclone: Annotated[str, typer.Option(help="the program that copies")] = "rclone",
) -> None:
    """Copy a bundle from a store of objects, whole and checked or not at all; run again, it goes on after a break."""
    from index.bundle.fetch import fetch  # slow imports, not for --help

    quiet_libraries()
    copied = fetch(source, out, sha256, rclone)
    typer.echo(f"{out}: {'copied and checked' if copied else 'is there already'}, {sha256}")
