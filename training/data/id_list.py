"""Files of ids, one a line, as people write them."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from pathlib import Path

from training.inputs import read_text


def read_lines(path: Path, meant: str) -> list[str]:
    """Return the lines of a text file that are not blank. Raises `InputError`. meant: noun phrase for its message."""
    text = read_text(path, meant, "text", "nothing (it is empty)")
    lines = text.split("\n")  # an id may contain any other separator
    return [line.removesuffix("\r") for line in lines if line.strip()]


def as_known(lines: Sequence[str], known: Callable[[str], bool], header: str) -> list[str]:
    """Return the ids in these lines as they are known. An id may hold blanks and quotes: it comes first.

    header: name of a column, which the first line may be instead of an id.
    """
    ids = [next((form for form in _forms(line) if known(form)), line.strip()) for line in lines]
    return ids[1:] if ids and not known(ids[0]) and _forms(ids[0])[-1] == header else ids


def _forms(line: str) -> list[str]:
    """Return the ways to read a line: as it is, without blanks around it, and without quotes."""
    stripped = line.strip()
    quoted = len(stripped) > 1 and stripped[0] == stripped[-1] and stripped[0] in "\"'"
    return [line, stripped, *([stripped[1:-1]] if quoted else [])]
