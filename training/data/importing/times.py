"""Time stamps of a log: numbers of one unit, or dates, which become microseconds since 1970."""

from __future__ import annotations

import math
from contextlib import suppress
from dataclasses import dataclass, field
from datetime import UTC, date, datetime, time
from pathlib import Path

import numpy as np
import polars as pl
from numpy.typing import NDArray

from training.data.importing.bad_rows import place
from training.data.importing.tables import RowError
from training.data.schema import DataError

LARGEST = 2**63
EXACT = 2**53  # whole numbers up to here are exact as fractions, too
# The least number of a unit that is a date from 1973 on; the dates of a unit end in the year 5138.
UNITS = {
    "seconds": 10**8,
    "milliseconds": 10**11,
    "microseconds": 10**14,
    "nanoseconds": 10**17,
}
DATES = "dates"
_EPOCH = datetime(1970, 1, 1, tzinfo=UTC)
_MEANT = "'timestamp' must be a number (such as seconds since 1970) or a date as in ISO 8601"
_ISO = "%Y-%m-%dT%H:%M:%S%.f%:z"


def time_of(value: object, text_numbers: bool = False) -> tuple[int | float, bool]:
    """Return a time stamp as a number, and whether it is a date. Raises `RowError` with the reason.

    value: a number, a date or time as of Parquet, or text in ISO 8601; without a time zone it is UTC.
    text_numbers: whether a text may be a number, as in a file without types.
    """
    if isinstance(value, str):
        value = _read(value.strip(), text_numbers)
    if isinstance(value, date) and not isinstance(value, datetime):
        value = datetime.combine(value, time())
    if isinstance(value, datetime):
        passed = (value if value.tzinfo else value.replace(tzinfo=UTC)) - _EPOCH
        return (passed.days * 86_400 + passed.seconds) * 10**6 + passed.microseconds, True
    if not isinstance(value, int | float) or isinstance(value, bool):
        raise RowError(f"{_MEANT}, got {value!r:.80}")
    if not math.isfinite(value) or abs(value) >= LARGEST:
        raise RowError(f"'timestamp' must be a finite number below 2^63, got {value!r:.80}")
    return value, False


def _read(text: str, text_numbers: bool) -> int | float | datetime:
    if text_numbers:
        for number in (int, float):
            with suppress(ValueError):
                return number(text)
    try:
        if "-" in text:  # without it, a number could be taken for a date
            return datetime.fromisoformat(text)
    except ValueError:
        pass
    raise RowError(f"{_MEANT}, got {text!r:.80}")


def time_column(column: pl.Series, text_numbers: bool) -> tuple[pl.Series, bool]:
    """Return a column of time stamps as int64 or float64, null where a row must be looked at, and whether it is dates.

    text_numbers: whether texts may be numbers, as in a file without types.
    """
    kind = column.dtype
    if kind.is_integer():
        return column.cast(pl.Int64, strict=False), False
    if kind.is_float():
        whole = column.cast(pl.Float64)
        return whole.set(~(whole.is_finite() & (whole.abs() < LARGEST)).fill_null(False), None), False
    if kind == pl.Date or isinstance(kind, pl.Datetime):
        zone = kind.time_zone if isinstance(kind, pl.Datetime) else None
        moment = column.cast(pl.Datetime("us", zone))
        return (moment.dt.convert_time_zone("UTC") if zone else moment).dt.timestamp("us"), True
    if kind != pl.String:
        return pl.Series(column.name, [None] * len(column), pl.Int64), False
    if text_numbers:
        for number in (pl.Int64, pl.Float64):
            cast = column.cast(number, strict=False)
            if cast.null_count() == column.null_count() and len(cast.drop_nulls()):
                return time_column(cast, False)
    text = column.str.strip_chars().str.replace(" ", "T").str.replace("[zZ]$", "+00:00")
    text = pl.select(
        pl.when(text.str.len_chars() == 10).then(text + "T00:00:00+00:00")
        .when(text.str.contains(r"[+-]\d\d:\d\d$")).then(text).otherwise(text + "+00:00")
    ).to_series()  # fmt: skip
    return text.str.strptime(pl.Datetime("us", "UTC"), _ISO, strict=False).dt.timestamp("us"), True


@dataclass
class Clock:
    """The units of a log's time stamps, which must be one.

    seen: of each unit, how many rows have it, and the first of them.
    fractions: whether some are not written as whole numbers.
    largest: the largest whole number.
    """

    path: Path
    seen: dict[str, tuple[int, int]] = field(default_factory=dict)
    fractions: bool = False
    largest: int = 0

    def see(self, values: pl.Series, numbers: pl.Series, dates: bool) -> None:
        """Take note of time stamps. numbers: rows of the file, as many as values; none of both is null."""
        if values.dtype == pl.Float64:
            self.fractions |= len(values) > 0
        elif len(values):
            self.largest = max(self.largest, int(np.abs(values.to_numpy()).max()))
        if dates:
            return self._note(DATES, numbers.to_numpy())
        units = np.searchsorted(list(UNITS.values()), np.abs(values.to_numpy().astype(float)), side="right")
        for k in np.unique(units).tolist():
            self._note(["", *UNITS][k], numbers.to_numpy()[units == k])

    def unit(self) -> str:
        """Return the unit; "" if it is not known. Raises `DataError` for several, and if digits would be lost."""
        units = {unit: found for unit, found in self.seen.items() if unit}
        if len(units) > 1 or (DATES in units and "" in self.seen):
            parts = [
                f"{unit or 'small numbers'} ({count:,}, such as {place(self.path, first)})"
                for unit, (count, first) in sorted(self.seen.items(), key=lambda found: found[1][1])
            ]
            raise DataError(
                f"{self.path}: the time stamps are of several units: {', '.join(parts)}; write all of them in one unit"
            )
        if self.fractions and self.largest > EXACT:
            raise DataError(
                f"{self.path}: some time stamps are whole numbers beyond 2^53, and others have fractions; "
                "write all of them as whole numbers"
            )
        return next(iter(units), "")

    def _note(self, unit: str, numbers: NDArray[np.int64]) -> None:
        if len(numbers):
            count, first = self.seen.get(unit, (0, int(numbers[0])))
            self.seen[unit] = (count + len(numbers), first)
