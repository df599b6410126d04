"""The manifest of a folder: the size and SHA-256 of every file, so that damage is found."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from index.records import Record, refuse_special

MANIFEST = "manifest.json"
LARGEST_FILE = 2**63 - 1  # bytes


class BundleError(Exception):
    """The bundle cannot be published or opened. The message names the file and the reason."""


def write_manifest(folder: Path, apart: str | None = None) -> None:
    """List every file of the folder, with its size and SHA-256, in `manifest.json`.

    apart: name of a folder inside that is left out, because it has manifests of its own.
    """
    entries = {
        name: {"sha256": sha256_of(folder / name), "bytes": (folder / name).stat().st_size}
        for name in _files(folder, apart)
    }
    # no newline at the end: a change of any byte must be found
    text = json.dumps({"files": entries}, indent=2)
    (folder / MANIFEST).write_text(text, "utf-8")


def verify(folder: Path, apart: str | None = None) -> None:
    """Check every file against the manifest. Raises `BundleError` that names the first file that differs."""
    path = folder / MANIFEST
    if not folder.exists():
        raise BundleError(f"there is no folder {folder}; give the path of a published bundle")
    if not folder.is_dir():
        raise BundleError(f"{folder} is not a folder; give the path of a published bundle")
    try:
        entries = _entries(path)
    except FileNotFoundError as error:
        raise BundleError(f"{folder} holds no {MANIFEST}; it is not a complete bundle") from error
    except ValueError as error:
        raise BundleError(f"{path} is damaged: {error}") from error
    present = set(_files(folder, apart)) - {MANIFEST}
    unknown = present - set(entries)
    if unknown:
        raise BundleError(f"{folder / min(unknown)} is not listed in the manifest")
    for name, (size, sha256) in entries.items():
        if name not in present:
            raise BundleError(f"{folder / name} is missing")
        if (folder / name).stat().st_size != size or sha256_of(folder / name) != sha256:
            raise BundleError(
                f"{folder / name} is damaged: it differs from the manifest; publish the bundle again"
            )


def _entries(path: Path) -> dict[str, tuple[int, str]]:
    """Return the size and SHA-256 of each file of a manifest. Raises `ValueError`, `FileNotFoundError`."""
    files = Record(path, Record.read(path).mapping("files"))
    entries = {name: Record(path, files.mapping(name)) for name in files.names}
    return {
        name: (each.whole("bytes", 0, LARGEST_FILE), each.text("sha256")) for name, each in entries.items()
    }


PANIC = "PanicException"  # what libraries in Rust fail with; it is no `Exception`, and has no public name


@contextmanager
def refusing(path: Path, what: str, kinds: tuple[type[Exception], ...] = (Exception,)) -> Iterator[None]:
    """Turn errors of some kinds into `BundleError`. what: completes the message "PATH cannot be …".

    By default of every kind: libraries that read foreign files raise whatever a damaged one leads to.
    """
    try:
        yield
    except BundleError:
        raise
    except BaseException as error:
        if not isinstance(error, kinds) and type(error).__name__ != PANIC:
            raise
        kind = "" if isinstance(error, (ValueError, OSError)) else f"{type(error).__name__}: "
        raise BundleError(f"{path} cannot be {what}: {kind}{error}") from error


def sha256_of(path: Path) -> str:
    """Return the SHA-256 of a file, in hexadecimal digits."""
    refuse_special(path)
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def _files(folder: Path, apart: str | None) -> list[str]:
    paths = [path.relative_to(folder) for path in folder.rglob("*") if path.is_file()]
    return sorted(path.as_posix() for path in paths if path.parts[0] != apart)
