"""`gems train`, and `gems plan` before it: every setting of `TrainConfig` is a flag."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Any

import typer
from rich.console import Console
from rich.progress import Progress
from typer.core import TyperCommand

from index.extensions import choices
from training.cli.common.flags import add_flags, given
from training.cli.common.numbers import finite
from training.cli.common.paths import JsonFile, input_bundle, output_folder
from training.cli.common.quiet import quiet_libraries
from training.config import METHODS, ConfigError, TrainConfig, new_flag, recipe_names
from training.settings import MOST

GB = 10**9


def _own_file(config: str | None) -> str | None:
    """Return the path of a file of settings. Raises `ConfigError` for the name of a recipe."""
    if config in recipe_names():
        raise ConfigError(
            f"{config} is a recipe: --recipe {config} (a file of that name: --config ./{config})"
        )
    return config


RecipeOption = Annotated[
    str | None,
    typer.Option(
        metavar=f"<{'|'.join(recipe_names())}>",
        help="settings of a known system; --config and flags win over it",
    ),
]
ConfigOption = Annotated[
    str | None,
    typer.Option(metavar="FILE", help="YAML file with settings; flags win over it", callback=_own_file),
]


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
    recipe: RecipeOption = None,
    config: ConfigOption = None,
    source: Annotated[
        Path | None,
        typer.Option(
            "--from",
            metavar="BUNDLE",
            help="go on from this bundle, or that of this run: its items keep their identifiers, the rate is low",
            callback=input_bundle,
        ),
    ] = None,
    resume: Annotated[bool, typer.Option(help="continue the run in OUT from its newest checkpoint")] = False,
    **flags: Any,
) -> None:
    """Train a model on a data set and publish it as a bundle."""
    from training.pipeline import train  # torch and transformers load slowly; --help should not wait
    from training.prepare.renewal import Renewal

    quiet_libraries()
    console = Console()
    renewal = None if source is None else Renewal.open(source)
    settings = (TrainConfig.load if renewal is None else renewal.settings)(config, given(flags), recipe)
    bundle = train(data, out, settings, resume=resume, renewal=renewal, console=console)
    if bundle is not None:
        console.print(f"bundle: {bundle}")


add_flags(train_command, TrainConfig)


def plan_command(
    memory: Annotated[float, typer.Option(min=0.1, max=1e6, callback=finite, help="memory of a GPU in GB")],
    items: Annotated[int, typer.Option(min=1, max=MOST, help="items of the catalogue")] = 10_000,
    gpus: Annotated[int, typer.Option(min=1, max=1_000_000, help="GPUs that share the training")] = 1,
    tflops: Annotated[
        float | None,
        typer.Option(
            min=1e-6,
            max=1e9,
            callback=finite,
            help="10^12 operations a second that the GPU reaches; for times",
        ),
    ] = None,
    recipe: RecipeOption = None,
    config: ConfigOption = None,
    json_file: JsonFile = None,
    **flags: Any,
) -> None:
    """Count memory and work of a training without data and without the backbone's weights.

    All settings of 'gems train' are flags here, too. Without a method, all of them are planned.
    """
    from training.plan.plan import plan  # slow imports, not for --help
    from training.plan.table import print_plan, save_plan

    quiet_libraries()
    settings = TrainConfig.load(config, given(flags), recipe)
    methods = [settings.method] if "method" in settings.model_fields_set else choices(METHODS)
    console = Console()
    with Progress(console=console, transient=True) as bar:
        row = bar.add_task("planning", total=None)
        result = plan(
            settings, methods, items, int(memory * GB), gpus=gpus, speed=tflops and tflops * 1e12,
            progress=lambda done, count: bar.update(row, completed=done, total=count),
        )  # fmt: skip
    print_plan(result, console)
    if json_file:
        save_plan(result, json_file)


add_flags(plan_command, TrainConfig)
