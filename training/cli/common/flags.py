"""Settings as flags: every field of a settings model becomes an option of a command."""

from __future__ import annotations

import inspect
import types
from collections.abc import Callable
from typing import Annotated, Any, get_args, get_origin

import typer
from pydantic import BaseModel


def add_flags(command: Callable[..., None], settings: type[BaseModel]) -> None:
    """Replace `**flags` in the signature that typer reads by one option per setting; those not given are None."""
    fixed = [p for p in inspect.signature(command, eval_str=True).parameters.values() if p.name != "flags"]
    fixed = [p.replace(kind=inspect.Parameter.KEYWORD_ONLY) for p in fixed]
    flags = [_flag(settings, name) for name in settings.model_fields]
    signature = inspect.Signature([*fixed, *flags])
    command.__signature__ = signature  # type: ignore[attr-defined]
    command.__annotations__ = {p.name: p.annotation for p in signature.parameters.values()}


def _flag(settings: type[BaseModel], name: str) -> inspect.Parameter:
    field = settings.model_fields[name]
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
