"""Settings as flags: every field of a settings model becomes an option of a command.

A setting in a group has the flag of its path: `gems.rank_share` is `--gems.rank-share`, and a switch is turned off by
`--gems.no-deflate`. The help shows one panel for each group.
"""

from __future__ import annotations

import inspect
import types
from collections.abc import Callable, Iterator, Mapping
from typing import Annotated, Any, get_args, get_origin

import typer
from pydantic import BaseModel
from pydantic.fields import FieldInfo

from index.extensions import choices

DOT = "__"  # between group and setting in the name of a parameter, which cannot hold a dot


def add_flags(command: Callable[..., None], settings: type[BaseModel]) -> None:
    """Replace `**flags` in the signature that typer reads by one option for each setting.

    Options that are not given are None; `given` returns the others.
    """
    fixed = [p for p in inspect.signature(command, eval_str=True).parameters.values() if p.name != "flags"]
    fixed = [p.replace(kind=inspect.Parameter.KEYWORD_ONLY) for p in fixed]
    signature = inspect.Signature([*fixed, *_flags(settings)])
    command.__signature__ = signature  # type: ignore[attr-defined]
    command.__annotations__ = {p.name: p.annotation for p in signature.parameters.values()}


def given(flags: Mapping[str, Any]) -> dict[str, Any]:
    """Return the settings that were given as flags, by their dotted names."""
    return {name.replace(DOT, "."): value for name, value in flags.items() if value is not None}


def _flags(settings: type[BaseModel]) -> Iterator[inspect.Parameter]:
    for name, field in settings.model_fields.items():
        group = field.annotation
        if isinstance(group, type) and issubclass(group, BaseModel):
            title = f"{name}: {(group.__doc__ or '').strip().rstrip('.')}"
            for inner, each in group.model_fields.items():
                path = f"--{name}.{{}}{inner}".replace("_", "-")
                declared = path.format("")
                if each.annotation is bool:
                    declared += "/" + path.format("no-")
                yield _flag(f"{name}{DOT}{inner}", each, declared, rich_help_panel=title)
        else:
            yield _flag(name, field)


def _flag(name: str, field: FieldInfo, *declared: str, **options: Any) -> inspect.Parameter:
    kind: Any = field.annotation
    if isinstance(kind, types.UnionType):  # `int | None`
        kind = next(arm for arm in get_args(kind) if arm is not type(None))
    if get_origin(kind) is tuple:
        kind = str
    extra = field.json_schema_extra
    # Checked by the settings, as new choices may be added.
    if isinstance(extra, dict) and "choices_of" in extra:
        package = str(extra["choices_of"])
        options["metavar"] = f"<{'|'.join(choices(package))}>"
    default = ",".join(map(str, field.default)) if isinstance(field.default, tuple) else field.default
    shown = False if default is None else str(default)
    option = typer.Option(*declared, help=field.description, show_default=shown, **options)
    return inspect.Parameter(
        name, inspect.Parameter.KEYWORD_ONLY, default=None, annotation=Annotated[kind | None, option]
    )
