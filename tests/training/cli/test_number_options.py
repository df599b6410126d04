"""Numbers on the command line: bounds that make sense, over all commands and options."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
from support.commands import COMMANDS, Command, Parameter
from typer.models import OptionInfo

from training.cli.common.numbers import NumberError, whole_numbers

NUMBERS = [
    (command, parameter)
    for command in COMMANDS
    for parameter in command.parameters
    if parameter.kind in (int, float)
]
ENDLESS = {"identifiers__code_capacity"}  # no capacity at all has a meaning
WIDE = 10**30


def wrong_values() -> list[tuple[Command, Parameter, str]]:
    found = []
    for command, parameter in NUMBERS:
        values = ["-1", "nan", "many"]
        if parameter.kind is int:
            values.append(str(WIDE))
        elif parameter.name not in ENDLESS:
            values.append("inf")
        if (
            isinstance(parameter.info, OptionInfo)
            and parameter.info.min is not None
            and parameter.info.min > 0
        ):
            values.append("0")
        found += [(command, parameter, value) for value in values]
    return found


def some_wrong_values() -> list[Any]:
    """Return the wrong values, of which those of a setting are slow but two in turn: its field checks them."""
    wrong: dict[tuple[str, str], list[Any]] = {}
    for each in wrong_values():
        wrong.setdefault((each[0].name, each[1].name), []).append(each)
    found = []
    for k, values in enumerate(wrong.values()):
        chosen = {k % len(values), (k + 1) % len(values)} if values[0][1].setting else set(range(len(values)))
        found += [
            pytest.param(*each, marks=[] if place in chosen else [pytest.mark.slow])
            for place, each in enumerate(values)
        ]
    return found


def test_every_number_of_a_command_has_bounds() -> None:
    for command, parameter in NUMBERS:
        if not parameter.setting:
            assert parameter.info.min is not None, f"{command} {parameter.flag}"
            assert parameter.info.max is not None, f"{command} {parameter.flag}"
    assert len(NUMBERS) > 100


@pytest.mark.parametrize(
    ("command", "parameter", "value"), some_wrong_values(), ids=lambda each: getattr(each, "flag", str(each))
)
def test_a_number_out_of_bounds_is_refused_before_anything_is_read(
    command: Command,
    parameter: Parameter,
    value: str,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    monkeypatch.setenv("TERM", "dumb")
    words = command.line(parameter, value, missing=tmp_path / "not there")
    assert command.run(words, monkeypatch) == 2
    said = capsys.readouterr().err
    assert "Traceback" not in said
    assert "not there" not in said  # the number comes first
    assert parameter.flag in said or parameter.name.replace("__", ".") in said or "nan" in said
    assert not list(tmp_path.iterdir())


def test_lists_of_numbers() -> None:
    assert whole_numbers("3, 5,8") == [3, 5, 8]
    for wrong in ("", "3,", "3,x", "0", "3;5", "1e3", str(WIDE)):
        with pytest.raises(NumberError):
            whole_numbers(wrong)
