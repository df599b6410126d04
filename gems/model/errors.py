"""Errors that the caller can correct."""

from __future__ import annotations

import math


class GemsError(ValueError):
    """A setting, a model, a knowledge basis or a state does not fit. The message says which one and how."""


def check_numbers(*, above: bool = False, below: float = math.inf, **numbers: float | None) -> None:
    """Raise `GemsError` unless each number is finite and at least 0 (`above`: more than 0), and below a bound."""
    for name, number in numbers.items():
        if number is None:
            continue
        if not (math.isfinite(number) and number < below and (number > 0 if above else number >= 0)):
            least = "above 0" if above else "at least 0"
            raise GemsError(
                f"{name} {number} must be {least} and {'finite' if below == math.inf else f'below {below:g}'}"
            )
