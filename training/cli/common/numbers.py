"""Numbers on the command line, with the bounds that they have everywhere."""

from __future__ import annotations

import math
from typing import Annotated

import typer

from training.errors import UserError
from training.settings import MOST, MOST_BEAMS, MOST_THREADS, SEEDS

Threads = Annotated[
    int | None, typer.Option(min=1, max=MOST_THREADS, help="CPU threads (default: all cores)")
]
Seed = Annotated[int, typer.Option(min=0, max=SEEDS, help="seed of the draws and of the bootstrap")]
BeamWidth = Annotated[int, typer.Option(min=1, max=MOST_BEAMS, help="hypotheses kept per level")]


class NumberError(UserError):
    """A list of numbers cannot be read."""


def finite(value: float | None) -> float | None:
    """Return a number. Raises `NumberError` for NaN, which no bound refuses."""
    if value is not None and math.isnan(value):
        raise NumberError("nan is not a number")
    return value


def whole_numbers(text: str, least: int = 1, most: int = MOST) -> list[int]:
    """Return comma-separated whole numbers. Raises `NumberError` for anything else and outside the bounds."""
    try:
        numbers = [int(part) for part in text.split(",")]
    except ValueError as error:
        raise NumberError(f"{text!r} must be whole numbers, separated by commas") from error
    if not all(least <= number <= most for number in numbers):
        raise NumberError(f"{text!r} must be numbers from {least} to {most}")
    return numbers
