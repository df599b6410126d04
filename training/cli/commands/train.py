"""`gems train`: every field of `TrainConfig` is a flag."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Any

import typer
from rich.console import Console

from training.cli.common.flags import add_flags
from training.cli.common.quiet import quiet_libraries
from training.config import TrainConfig


def train_command(
    data: Annotated[Path, typer.Option(help="folder of a data set, see 'gems data'")],
    out: Annotated[Path, typer.Option(help="run folder to write; the bundle will be OUT/bundle")],
    config: Annotated[
        Path | None, typer.Option(help="YAML file with settings, or the name of a recipe; flags win over it")
    ] = None,
    resume: Annotated[bool, typer.Option(help="continue the run in OUT from its newest checkpoint")] = False,
    **flags: Any,
) -> None:
    """Train a model on a data set and publish it as a bundle."""
    from training.pipeline import train  # torch and transformers load slowly; --help should not wait

    quiet_libraries()

    given = {name: value for name, value in flags.items() if value is not None}
    if "codebooks" in given:
        given["codebooks"] = given["codebooks"].split(",")
    console = Console()
    bundle = train(data, out, TrainConfig.load(config, given), resume=resume, console=console)
    if bundle is not None:
        console.print(f"bundle: {bundle}")


add_flags(train_command, TrainConfig)
