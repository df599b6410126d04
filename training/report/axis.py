"""A linear axis: round ticks for a range of data, and coordinates of values in the drawing."""

from __future__ import annotations

import math
from collections.abc import Iterable
from dataclasses import dataclass


@dataclass(frozen=True)
class Axis:
    """A map from the values low..high to the coordinates start..end (end < start on an axis that points up)."""

    low: float
    high: float
    start: float
    end: float

    @classmethod
    def around(cls, values: Iterable[float], start: float, end: float, margin: float = 0.0) -> Axis:
        """Return an axis for the range of the values.

        margin: share of the range that is added at each end. The range of a single value is widened by a twentieth of
        it.
        """
        found = list(values)
        low, high = min(found), max(found)
        widening = (high - low) * margin or (abs(low) / 20 or 1.0 if high == low else 0.0)
        return cls(low - widening, high + widening, start, end)

    def place(self, value: float) -> float:
        """Return the coordinate of a value."""
        return self.start + (value - self.low) / (self.high - self.low) * (self.end - self.start)

    def ticks(self, count: int, smallest: float = 0.0) -> list[tuple[float, str]]:
        """Return about `count` ticks with their labels, at multiples of 1, 2 or 5 times a power of ten.

        smallest: smallest distance between two ticks.
        """
        rough = max((self.high - self.low) / count, smallest)
        power = 10.0 ** math.floor(math.log10(rough))
        step = power * next(factor for factor in (1, 2, 5, 10) if factor * power >= rough * 0.999)
        first, last = math.ceil(self.low / step - 1e-9), math.floor(self.high / step + 1e-9)
        return [(k * step, _label(k * step, step)) for k in range(first, last + 1)]


def _label(value: float, step: float) -> str:
    """Format a tick with enough digits to distinguish it from the next."""
    place = math.floor(math.log10(step) + 1e-9)
    if place >= -4 and abs(value) < 1e7:
        return f"{value:,.{max(0, -place)}f}"
    digits = math.floor(math.log10(abs(value))) - place + 1 if value else 1
    return f"{value:.{max(1, digits)}g}"
