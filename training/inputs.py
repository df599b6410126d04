"""Files that a person gives to a command: told apart before they are read, for one clear message about a wrong one."""

from __future__ import annotations

from pathlib import Path

from index.contents import contents_of
from training.errors import UserError

ANYTHING = dict.fromkeys(("gzip data", "bzip2 data", "xz data", "zstd data"), "unpack it first")
IN_TEXT = dict.fromkeys(
    ("UTF-16 text", "UTF-32 text", "text in another encoding than UTF-8"), "save it as UTF-8"
)
IN_LINES = {
    "a JSON array": "write each element on a line of its own, without the brackets",
    "a JSON object": "write each row on a line of its own",
    "CSV": "convert it to JSON Lines or Parquet",
    "a Parquet file": "let its name end in .parquet",
}
# What may be there, in the words of `contents_of`. Text may be JSON Lines with a bad first line.
LINES = ("JSON Lines", "text", "nothing (it is empty)")
JSON = ("a JSON object", "JSON Lines", "text")
YAML = (*JSON, "nothing (it is empty)")


class InputError(UserError):
    """A file cannot be read as what was meant. The message says what is there."""


def mistaken(path: Path, meant: str, *fitting: str) -> str | None:
    """Return a sentence about a file that is not what was meant; None if it may be.

    meant: noun phrase for the message.
    fitting: what may be there, in the words of `contents_of`.
    """
    found = contents_of(path)
    if found == "nothing":
        return f"there is no file {path}"
    if found in fitting:
        return None
    remedies = ANYTHING | (IN_TEXT if "text" in fitting else {}) | (IN_LINES if fitting == LINES else {})
    remedy = remedies.get(found)
    return f"{path} {'is' if path.is_dir() else 'holds'} {found}, not {meant}" + (
        f"; {remedy}" if remedy else ""
    )


def read_text(path: Path, meant: str, *fitting: str) -> str:
    """Return the text of a UTF-8 file, without a byte-order mark. Raises `InputError`.

    meant, fitting: see `mistaken`.
    """
    if wrong := mistaken(path, meant, *fitting):
        raise InputError(wrong)
    try:
        return path.read_text("utf-8-sig")
    except (OSError, ValueError) as error:
        raise InputError(f"{path} cannot be read: {error}") from error
