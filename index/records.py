"""JSON of files that others wrote: parsed within bounds, and read field by field with a check of type and range.

A file may be valid JSON and still be absurd: nested so deeply that nothing can walk through it, with numbers that no
list is long enough for, or with text that no answer can carry. All this is refused where it is read.
"""

from __future__ import annotations

import json
import math
from collections.abc import Mapping
from datetime import datetime
from pathlib import Path
from typing import Any, NoReturn

MAX_DEPTH = 64  # lists and objects within each other
_SHOWN = 60  # characters of a wrong value in a message


class RecordError(ValueError):
    """A file holds no JSON object, or a field of it is missing or wrong. The message names the file and the field."""


def parse_json(text: str) -> Any:
    """Return the value of a JSON text.

    Raises `ValueError` for what is not JSON, for NaN and infinite numbers, for text that is not Unicode, and for values
    nested deeper than `MAX_DEPTH`.
    """
    try:
        value = _DECODER.decode(text)
    except RecursionError:
        raise ValueError(_TOO_DEEP) from None
    if "\\u" in text or text.count("[") + text.count("{") > MAX_DEPTH:  # nothing else can be wrong
        check_tree(value)
    return value


def refuse_special(path: Path) -> None:
    """Raise `RecordError` for what is there and no regular file: to open a pipe would wait for ever."""
    if path.exists() and not path.is_file():
        raise RecordError(f"{path} is not a file")


def read_json(path: Path) -> Any:
    """Return the value in a JSON file. Raises `RecordError` that names the file, and `OSError`."""
    refuse_special(path)
    try:
        return parse_json(path.read_text("utf-8"))
    except ValueError as error:  # also text that is not UTF-8
        raise RecordError(f"{path} is not JSON that can be used: {error}") from error


def check_tree(value: object, most: float = math.inf) -> None:
    """Raise `ValueError` if lists and mappings are nested too deeply or in a circle, or a text is not Unicode.

    most: values that there may be, counted again wherever the same one is repeated.
    """
    waiting: list[tuple[object, int]] = [(value, 0)]
    count = 0
    while waiting:
        each, depth = waiting.pop()
        count += 1
        if depth > MAX_DEPTH:
            raise ValueError(_TOO_DEEP)
        if count > most:
            raise ValueError(f"it holds more than {most:,} values")
        if isinstance(each, str):
            each.encode()
        elif isinstance(each, Mapping):
            waiting += [(part, depth + 1) for pair in each.items() for part in pair]
        elif isinstance(each, list):
            waiting += [(part, depth + 1) for part in each]


class Record:
    """A JSON object of a file. Each method returns a field, and raises `RecordError` if it is missing or wrong.

    path: the file, for messages.
    fields: values by name, unchecked.
    Raises `RecordError` if the value is no object.
    """

    def __init__(self, path: Path, value: object) -> None:
        if not isinstance(value, dict):
            raise RecordError(f"{path} must hold a JSON object")
        self.path = path
        self.fields: dict[str, Any] = value

    @classmethod
    def read(cls, path: Path) -> Record:
        """Read the object in a file. Raises `RecordError`, and `OSError`."""
        return cls(path, read_json(path))

    def require(self, *names: str) -> None:
        """Raise `RecordError` that names the fields that are missing."""
        missing = set(names) - set(self.fields)
        if missing:
            raise RecordError(f"{self.path}: lacks {', '.join(sorted(missing))}")

    @property
    def names(self) -> list[str]:
        """Names of all fields, in the order of the file."""
        return list(self.fields)

    def value(self, name: str) -> Any:
        """Return any value."""
        self.require(name)
        return self.fields[name]

    def text(self, name: str, *, empty: bool = False) -> str:
        """Return a text. empty: whether it may be empty."""
        value = self.value(name)
        if not isinstance(value, str) or not (value or empty):
            self._refuse(name, "a text", value)
        return value

    def one_of(self, name: str, choices: tuple[str, ...]) -> str:
        """Return a text that is one of the choices."""
        value = self.text(name)
        if value not in choices:
            raise RecordError(f"{self.path}: unknown {name} {_shown(value)}; one of {', '.join(choices)}")
        return value

    def time(self, name: str) -> str:
        """Return an ISO 8601 time, as text."""
        value = self.text(name)
        try:
            datetime.fromisoformat(value).timestamp()
        except (ValueError, OverflowError, OSError):  # some years have no time stamp
            self._refuse(name, "an ISO 8601 time", value)
        return value

    def whole(self, name: str, least: int, most: int) -> int:
        """Return a whole number of a range, both ends included."""
        value = self.value(name)
        if not _is_whole(value, least, most):
            self._refuse(name, f"a whole number from {least} to {most}", value)
        return int(value)

    def number(self, name: str, least: float, most: float) -> float:
        """Return a number of a range, both ends included."""
        value = self.value(name)
        if not isinstance(value, int | float) or isinstance(value, bool) or not least <= value <= most:
            self._refuse(name, f"a number from {least:g} to {most:g}", value)
        return float(value)

    def wholes(self, name: str, least: int, most: int) -> tuple[int, ...]:
        """Return a list of whole numbers of a range, both ends included."""
        value = self.value(name)
        if not isinstance(value, list) or not all(_is_whole(each, least, most) for each in value):
            self._refuse(name, f"a list of whole numbers from {least} to {most}", value)
        return tuple(value)

    def texts(self, name: str) -> list[str]:
        """Return a list of texts."""
        value = self.value(name)
        if not isinstance(value, list) or not all(isinstance(each, str) for each in value):
            self._refuse(name, "a list of texts", value)
        return list(value)

    def mapping(self, name: str) -> dict[str, Any]:
        """Return an object."""
        value = self.value(name)
        if not isinstance(value, dict):
            self._refuse(name, "a JSON object", value)
        return dict(value)

    def _refuse(self, name: str, wanted: str, value: object) -> NoReturn:
        raise RecordError(f"{self.path}: {name} must be {wanted}, got {_shown(value)}")


_TOO_DEEP = f"it is nested deeper than {MAX_DEPTH} levels"


def _is_whole(value: object, least: int, most: int) -> bool:
    return isinstance(value, int) and not isinstance(value, bool) and least <= value <= most


def _shown(value: object) -> str:
    text = repr(value)
    return text if len(text) <= _SHOWN else f"{text[:_SHOWN]}…"


def _finite(text: str) -> float:
    value = float(text)
    if not math.isfinite(value):
        _not_finite(text)
    return value


def _not_finite(text: str) -> NoReturn:
    raise ValueError(f"{text[:_SHOWN]} is no finite number")


_DECODER = json.JSONDecoder(parse_constant=_not_finite, parse_float=_finite)
