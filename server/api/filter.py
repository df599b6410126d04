"""The filter of a request: conditions on the attributes of the items."""

from __future__ import annotations

import sys
from typing import Annotated, Any

from pydantic import BaseModel, ConfigDict, Field

from index.trie.attribute import BOUNDS
from index.trie.filters import MAX_TEXT_CHARS

MAX_ATTRIBUTES = 32
MAX_VALUES = 1000  # of one attribute

Number = Annotated[float, Field(allow_inf_nan=False)]
FilterValue = Annotated[str, Field(max_length=MAX_TEXT_CHARS)] | bool | Number
FilterValues = Annotated[list[FilterValue], Field(min_length=1, max_length=MAX_VALUES)]


class NumberRange(BaseModel):
    """Range of numbers; an absent bound does not limit it. At least one is given."""

    model_config = ConfigDict(
        strict=True,
        extra="forbid",
        frozen=True,
        json_schema_extra={
            "anyOf": [{"required": [bound], "properties": {bound: {"type": "number"}}} for bound in BOUNDS]
        },
    )

    gt: Number | None = None
    gte: Number | None = None
    lt: Number | None = None
    lte: Number | None = None


FilterCondition = FilterValue | FilterValues | NumberRange
Filter = Annotated[dict[str, FilterCondition], Field(max_length=MAX_ATTRIBUTES)]


def given(asked: Any) -> Any:
    """Return a filter as it was sent, before it is validated; None if it has no condition.

    Raises `ValueError` with one clear message for the first invalid condition: pydantic reports one for each type of
    the union.
    """
    if not isinstance(asked, dict):
        return asked
    if len(asked) > MAX_ATTRIBUTES:
        raise ValueError(f"a filter names at most {MAX_ATTRIBUTES} attributes")
    for condition in asked.values():
        _check(condition)
    return asked or None


def _check(condition: Any) -> None:
    if isinstance(condition, dict):
        if len(condition) > len(BOUNDS) or not set(condition) <= set(BOUNDS):
            raise ValueError(f"a range takes {', '.join(BOUNDS)}, at least one of them, and nothing else")
        bounds = [bound for bound in condition.values() if bound is not None]
        if not bounds:
            raise ValueError(f"a range needs at least one of {', '.join(BOUNDS)}")
        if not all(map(_is_number, bounds)):
            raise ValueError("the bounds of a range are numbers that a double can hold")
        return
    values = condition if isinstance(condition, list) else [condition]
    if not 1 <= len(values) <= MAX_VALUES:
        raise ValueError(f"a list of values holds 1 to {MAX_VALUES} of them")
    for value in values:
        if isinstance(value, str):
            if len(value) > MAX_TEXT_CHARS:
                raise ValueError(f"a text to filter by has at most {MAX_TEXT_CHARS} characters")
        elif not isinstance(value, bool) and not _is_number(value):
            raise ValueError(
                "a value to filter by is a text, true, false, or a number that a double can hold"
            )


def _is_number(value: Any) -> bool:
    number = isinstance(value, int | float) and not isinstance(value, bool)
    return number and abs(value) <= sys.float_info.max
