"""`gems train`: every setting of `TrainConfig` is a flag."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Any

import typer
from rich.console import Console
from typer.core import TyperCommand

from training.cli.common.flags import add_flags, given
from training.cli.common.paths import output_folder
from training.cli.common.quiet import quiet_libraries
from training.config import ConfigError, TrainConfig, new_flag


class TrainCommand(TyperCommand):
    """Command that refuses the flags of older versions with their new names."""

    def parse_args(self, ctx: Any, args: list[str]) -> list[str]:
        """Parse the arguments. Raises `ConfigError` for old flags."""
        old = [said for said in (new_flag(word.split("=")[0]) for word in args) if said]
        if old:
            raise ConfigError("; ".join(old))
        return super().parse_args(ctx, args)


def train_command(
    data: Annotated[Path, typer.Option(help="folder of a data set, see 'gems data'")],
    out: Annotated[
        Path,
        typer.Option(help="run folder to write; the bundle will be OUT/bundle", callback=output_folder),
    ],
    config: Annotated[
        str | None,
        typer.Option(
            metavar="RECIPE|FILE",
            help="name of a recipe, or YAML file with settings (./NAME if it bears the name of a recipe); flags "
            "win over it",
        ),
    ] = None,
    resume: Annotated[bool, typer.Option(help="continue the run in OUT from its newest checkpoint")] = False,
    **flags: Any,
) -> None:
    """Train a model on a data set and publish it as a bundle."""
    from training.pipeline import train  # torch and transformers load slowly; --help should not wait

    quiet_libraries()
    console = Console()
    bundle = train(data, out, TrainConfig.load(config, given(flags)), resume=resume, console=console)
    if bundle is not None:
        console.print(f"bundle: {bundle}")


add_flags(train_command, TrainConfig)
