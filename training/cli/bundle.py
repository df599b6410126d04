"""`gems bundle`: a bundle on disk."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer
from rich.console import Console
from rich.table import Table

from training.cli.quiet import quiet_libraries

bundle_app = typer.Typer(no_args_is_help=True, help="Check a published bundle.")


@bundle_app.command("verify")
def verify_command(bundle: Annotated[Path, typer.Argument(help="folder of a published bundle")]) -> None:
    """Check every file against its hash and every index version; show what takes how much room."""
    # slow imports, not for --help
    from index.bundle import INDEX, Bundle
    from index.manifest import verify
    from index.versions import Versions

    quiet_libraries()
    opened = Bundle.open(bundle)
    versions = Versions(bundle / INDEX)
    for name in versions.names():
        verify(versions.folder / name)
    trie = opened.index.trie
    items = len(opened.index.catalogue)
    table = Table("part", "MB", "bytes an item")
    for part, size in (
        *_sizes(bundle),
        ("of it: tree", trie.node_bytes),
        ("of it: items of the leaves", trie.item_bytes),
    ):
        table.add_row(part, f"{size / 1e6:.2f}", f"{size / items:.1f}")
    console = Console()
    console.print(
        f"{bundle} is whole: {opened.info.bundle_id}, index {opened.index.version} of {', '.join(versions.names())}, "
        f"{items} items",
        highlight=False,
        soft_wrap=True,
    )
    console.print(table)


def _sizes(bundle: Path) -> list[tuple[str, int]]:
    """Bytes of each part: files of the bundle by kind, and of each part of the current index."""
    from index.bundle import INDEX
    from index.versions import Versions

    current = Versions(bundle / INDEX).current()
    parts = {
        "weights": bundle.glob("*.safetensors"),
        "tokenizer and settings": bundle.glob("*.json"),
        "codebooks": bundle.glob("codebooks/*"),
        "catalogue": current.glob("catalogue/*"),
        "filters": current.glob("filters/*"),
        "trie": current.glob("trie/*"),
    }
    return [(name, sum(file.stat().st_size for file in files)) for name, files in parts.items()]
