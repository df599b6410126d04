"""`gems train`: every field of `TrainConfig` is a flag."""

from __future__ import annotations

import inspect
import types
from pathlib import Path
from typing import Annotated, Any, get_args, get_origin

import typer
from rich.console import Console

from training.cli.quiet import quiet_libraries
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


def _flag(name: str) -> inspect.Parameter:
    field = TrainConfig.model_fields[name]
    kind: Any = field.annotation
    if isinstance(kind, types.UnionType):  # `int | None`
        kind = next(arm for arm in get_args(kind) if arm is not type(None))
    if get_origin(kind) is tuple:
        kind = str
    default = ",".join(map(str, field.default)) if isinstance(field.default, tuple) else field.default
    shown = False if default is None else str(default)
    option = typer.Option(help=field.description, show_default=shown)
    return inspect.Parameter(
        name, inspect.Parameter.KEYWORD_ONLY, default=None, annotation=Annotated[kind | None, option]
    )


def _add_flags() -> None:
    """Replace `**flags` in the signature that typer reads by one parameter per setting."""
    fixed = [
        p for p in inspect.signature(train_command, eval_str=True).parameters.values() if p.name != "flags"
    ]
    fixed = [p.replace(kind=inspect.Parameter.KEYWORD_ONLY) for p in fixed]
    signature = inspect.Signature([*fixed, *map(_flag, TrainConfig.model_fields)])
    train_command.__signature__ = signature  # type: ignore[attr-defined]
    train_command.__annotations__ = {p.name: p.annotation for p in signature.parameters.values()}


_add_flags()
