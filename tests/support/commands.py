"""Every command of `gems` and of `bench`, with its parameters, and a way to run it as a person does."""

from __future__ import annotations

import importlib
import inspect
import sys
import types
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any, get_args, get_origin

import pytest
import typer

from support.paths import ROOT
from training.cli.app import app as gems
from training.cli.common.command import run_command
from training.cli.common.flags import DOT
from training.cli.main import main


@dataclass(frozen=True)
class Parameter:
    """An argument or an option.

    kind: its type, without None and lists.
    info: what typer knows of it.
    setting: whether it is a field of a settings model, which checks it.
    """

    name: str
    kind: type
    info: Any
    required: bool
    setting: bool

    @property
    def flag(self) -> str:
        """The option as it is written; empty for an argument."""
        if isinstance(self.info, typer.models.ArgumentInfo):
            return ""
        declared = [
            self.info.default,
            *(self.info.param_decls or ()),
        ]  # in `Annotated` the first stands as default
        written = [name for name in declared if isinstance(name, str) and name.startswith("--")]
        return written[0].split("/")[0] if written else f"--{self.name.replace(DOT, '.')}".replace("_", "-")

    def words(self, value: str) -> list[str]:
        return [f"{self.flag}={value}"] if self.flag else [value]


@dataclass(frozen=True)
class Command:
    """A command: its words after `gems`, or the name of its module in `bench`."""

    name: str
    function: Callable[..., Any]
    parameters: tuple[Parameter, ...]

    def __str__(self) -> str:
        return self.name

    def line(self, chosen: Parameter, value: str, missing: Path) -> list[str]:
        """The words that give one parameter a value, and every other required one something that is not there."""
        words = [] if self.name.startswith("bench.") else self.name.split()
        for each in self.parameters:
            if each == chosen:
                words += each.words(value)
            elif each.required:
                words += each.words(str(missing) if each.kind is Path else "1")
        return words

    def run(self, words: list[str], monkeypatch: pytest.MonkeyPatch) -> int:
        """Run it in this process; return the exit code."""
        monkeypatch.setattr(sys, "argv", ["program", *words])
        try:
            if self.name.startswith("bench."):
                run_command(self.function, self.name)
            else:
                main()
        except SystemExit as ended:
            return ended.code if isinstance(ended.code, int) else 0 if ended.code is None else 1
        return 0


def _parameters(function: Callable[..., Any]) -> Iterator[Parameter]:
    declared = set(inspect.signature(inspect.unwrap(function)).parameters)
    code = function.__code__.co_varnames[
        : function.__code__.co_argcount + function.__code__.co_kwonlyargcount
    ]
    for each in inspect.signature(function, eval_str=True).parameters.values():
        metadata = getattr(each.annotation, "__metadata__", ())
        if not metadata:  # typer's own context
            continue
        kind = get_args(each.annotation)[0]
        if isinstance(kind, types.UnionType):
            kind = next(arm for arm in get_args(kind) if arm is not type(None))
        if get_origin(kind) is list:
            (kind,) = get_args(kind)
        required = each.default is inspect.Parameter.empty
        yield Parameter(
            each.name, kind, metadata[0], required, each.name in declared and each.name not in code
        )


def _commands(group: typer.Typer, prefix: str) -> Iterator[Command]:
    for each in group.registered_commands:
        assert each.callback is not None
        yield Command(f"{prefix}{each.name}", each.callback, tuple(_parameters(each.callback)))
    for inner in group.registered_groups:
        assert inner.typer_instance is not None
        yield from _commands(inner.typer_instance, f"{prefix}{inner.name} ")


def _benchmarks() -> Iterator[Command]:
    for path in sorted((ROOT / "bench").glob("*.py")):
        function = getattr(importlib.import_module(f"bench.{path.stem}"), "main", None)
        if function is not None:
            yield Command(f"bench.{path.stem}", function, tuple(_parameters(function)))


COMMANDS = [*_commands(gems, ""), *_benchmarks()]
