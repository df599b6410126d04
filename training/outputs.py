"""Files that a command writes at its end: tried before the work begins, written whole or not at all."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

from index.files import atomic_write, try_write
from training.errors import UserError


class OutputError(UserError):
    """A file or folder cannot be written. The message names it and the reason."""


def check_output(path: Path, *, folder: bool = False) -> None:
    """Raise `OutputError` if a file, or a folder of files, cannot be written at `path`. Leaves nothing behind."""
    try:
        try_write(path, folder=folder)
    except OSError as error:
        raise OutputError(
            f"{path} cannot be written: {error.strerror or error}; choose another {'folder' if folder else 'file'}"
        ) from error


def write_output(path: Path, write: Callable[[Path], object]) -> None:
    """Write a file as a whole. Raises `OutputError`, for a full disk, too; `path` is then as it was.

    write: writes the file whose path it is called with.
    """
    try:
        with atomic_write(path) as draft:
            write(draft)
    except OSError as error:
        raise OutputError(
            f"{path} cannot be written: {error.strerror or error}; it is as it was before"
        ) from error


def write_text(path: Path, text: str) -> None:
    """Write a text file as a whole. Raises `OutputError`."""
    write_output(path, lambda draft: draft.write_text(text, "utf-8"))


def write_json(path: Path, value: Any) -> None:
    """Write a JSON file as a whole, for people to read. Raises `OutputError`."""
    write_text(path, json.dumps(value, indent=2, ensure_ascii=False) + "\n")
