"""`gems fuse`: weights of the pool's signals for a published bundle."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer
from rich.console import Console

from training.cli.common.device import DeviceOption
from training.cli.common.numbers import Seed, Threads, finite
from training.cli.common.paths import BundlePath
from training.cli.common.quiet import quiet_libraries
from training.settings import split


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
