"""Files that a person gives to a command: told apart before they are read, for one clear message about a wrong one."""

from __future__ import annotations

from pathlib import Path

from index.contents import contents_of
from training.errors import UserError

# How to make the right thing of what is there.
REMEDIES = {
    "UTF-16 text": "save it as UTF-8",
    "UTF-32 text": "save it as UTF-8",
    "text in another encoding than UTF-8": "save it as UTF-8",
    "gzip data": "unpack it first",
    "bzip2 data": "unpack it first",
    "xz data": "unpack it first",
    "zstd data": "unpack it first",
    "a JSON array": "write each element on a line of its own, without the brackets",
    "a JSON object": "write the whole object on one line",
}
LINES = ("JSON Lines", "text", "nothing (it is empty)")  # text may be JSON Lines with a bad first line
TEXT = ("text", "CSV", "JSON Lines", "a JSON object", "a JSON array", "HTML or XML", "nothing (it is empty)")


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
    remedy = REMEDIES.get(found)
    return f"{path} {'is' if path.is_dir() else 'holds'} {found}, not {meant}" + (
        f"; {remedy}" if remedy else ""
    )


def read_text(path: Path, meant: str, *fitting: str) -> str:
    """Return the text of a UTF-8 file, without a byte-order mark. Raises `InputError`.

    meant, fitting: see `mistaken`; any text fits if nothing else is named.
    """
    if wrong := mistaken(path, meant, *(fitting or TEXT)):
        raise InputError(wrong)
    try:
        return path.read_text("utf-8-sig")
    except (OSError, ValueError) as error:
        raise InputError(f"{path} cannot be read: {error}") from error
