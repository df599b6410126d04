"""Checks that rows of every file share."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from training.data.importing.tables import RowError


def record_of(row: object, required: tuple[str, ...]) -> Mapping[str, Any]:
    """Return a row that is an object with the required fields. Raises `RowError` with the reason."""
    if isinstance(row, RowError):
        raise row
    if not isinstance(row, dict):
        raise RowError(f"not a JSON object, got {shown(row)}")
    missing = [key for key in required if key not in row]
    if missing:
        raise RowError(f"missing {', '.join(map(repr, missing))}")
    return row


def check_text(text: str) -> str:
    """Return the text. Raises `RowError` for a lone surrogate, which JSON can hold and a text file cannot."""
    try:
        text.encode("utf-8")
    except UnicodeEncodeError as error:
        raise RowError(f"holds text that is not valid Unicode: {error}") from error
    return text


def shown(value: object) -> str:
    """Return a wrong value for a message, cut to 80 characters."""
    text = repr(value)
    return text if len(text) <= 80 else f"{text[:77]}..."
