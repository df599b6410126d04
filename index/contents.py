"""Contents of a file or a folder, told by its first bytes or by the files in it, for messages about wrong paths."""

from __future__ import annotations

import re
from pathlib import Path

from index.records import parse_json

LOOKED_AT = 1 << 16  # first bytes of a file

# The files that make a folder what it is; the first that fits is named.
FOLDERS = (
    ("a bundle", ("bundle.json", "manifest.json")),
    ("an index version of a bundle", ("index.json", "manifest.json")),
    ("the index of a bundle", ("current.json",)),
    ("a run folder", ("config.yaml", "environment.json")),
    ("a data set", ("data.json", "items.jsonl", "interactions.parquet")),
    ("a sweep", ("summary.json", "summary.md")),
    ("a Hugging Face model", ("config.json",)),
)
SIGNATURES = (
    (b"\x1f\x8b", "gzip data"),
    (b"BZh", "bzip2 data"),
    (b"\xfd7zXZ", "xz data"),
    (b"\x28\xb5\x2f\xfd", "zstd data"),
    (b"PK\x03\x04", "a zip archive"),  # .npz is one
    (b"PAR1", "a Parquet file"),
    (b"\x93NUMPY", "a NumPy array"),
    (b"\x80\x02", "a pickle"), (b"\x80\x03", "a pickle"), (b"\x80\x04", "a pickle"), (b"\x80\x05", "a pickle"),
    (b"\xff\xfe\x00\x00", "UTF-32 text"), (b"\x00\x00\xfe\xff", "UTF-32 text"),
    (b"\xff\xfe", "UTF-16 text"), (b"\xfe\xff", "UTF-16 text"),
)  # fmt: skip
COLUMNS = {"item_id", "user_id", "title", "timestamp", "behaviour", "query", "vector"}
_CELLS = re.compile(r"[,;\t|]")


def contents_of(path: Path) -> str:
    """Return what is at `path` as a noun phrase: "a run folder", "gzip data", "JSON Lines", "text", "nothing"."""
    if path.is_dir():
        return _contents_of_folder(path)
    if not path.exists():
        return "nothing"
    try:
        with path.open("rb") as file:
            return _contents_of_bytes(file.read(LOOKED_AT))
    except OSError:
        return "a file that cannot be read"


def _contents_of_folder(path: Path) -> str:
    for kind, names in FOLDERS:
        if all((path / name).is_file() for name in names):
            return kind
    return "a folder" if any(path.iterdir()) else "an empty folder"


def _contents_of_bytes(start: bytes) -> str:
    if not start:
        return "nothing (it is empty)"
    for signature, kind in SIGNATURES:
        if start.startswith(signature):
            return kind
    first = start.lstrip().partition(b"\n")[0]
    if b"\x00" in first:
        # Latin letters in UTF-16 have a zero in every second byte.
        zeros = [first[offset::2].count(0) for offset in (0, 1)]
        if min(zeros) == 0 and max(zeros) > len(first) / 5:
            return "UTF-16 text"
        return "a safetensors file" if start[8:10] == b'{"' else "binary data"
    try:
        text = start.decode("utf-8-sig")
    except UnicodeDecodeError as error:
        text = start[: error.start].decode("utf-8-sig")
        cut = len(start) == LOOKED_AT and error.start > len(start) - 4  # within a letter, by us
        if not cut and "\n" not in text.lstrip():  # a line after good ones is a bad row
            return "text in another encoding than UTF-8"
    return _contents_of_text(text.lstrip())


def _contents_of_text(text: str) -> str:
    first = text.partition("\n")[0].strip()
    if re.match(r"\[\s*[\[{\"]", text) or (first.startswith("[") and _is_json(text)):
        return "a JSON array"
    if first == "{":
        return "a JSON object"
    if re.match(r"\{\s*[\"}]", first):
        return "JSON Lines"
    columns = COLUMNS & {cell.strip(" \"'").lower() for cell in _CELLS.split(first)}
    if _CELLS.search(first) and (len(columns) > 1 or columns & {"item_id", "user_id"}):
        return "CSV"
    return "HTML or XML" if re.match(r"<[!?a-zA-Z]", first) else "text"


def _is_json(text: str) -> bool:
    try:
        parse_json(text)
    except (ValueError, RecursionError):
        return False
    return True
