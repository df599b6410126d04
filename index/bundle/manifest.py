"""The manifest of a folder: the size and SHA-256 of every file, so that damage is found."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

MANIFEST = "manifest.json"


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
    if not folder.is_dir():
        raise BundleError(f"{folder} is not a folder; give the path of a published bundle")
    try:
        expected = json.loads(path.read_text("utf-8"))["files"]
        entries = [(name, entry["sha256"], entry["bytes"]) for name, entry in expected.items()]
    except FileNotFoundError as error:
        raise BundleError(f"{folder} holds no {MANIFEST}; it is not a complete bundle") from error
    except (ValueError, KeyError, TypeError, AttributeError) as error:
        raise BundleError(f"{path} is damaged: {error}") from error
    present = set(_files(folder, apart)) - {MANIFEST}
    unknown = present - set(expected)
    if unknown:
        raise BundleError(f"{folder / min(unknown)} is not listed in the manifest")
    for name, sha256, size in entries:
        if name not in present:
            raise BundleError(f"{folder / name} is missing")
        if (folder / name).stat().st_size != size or sha256_of(folder / name) != sha256:
            raise BundleError(
                f"{folder / name} is damaged: it differs from the manifest; publish the bundle again"
            )


DAMAGE = (OSError, ValueError, KeyError, TypeError)  # errors that damaged files may cause


@contextmanager
def refusing(path: Path, what: str, kinds: tuple[type[Exception], ...] = DAMAGE) -> Iterator[None]:
    """Turn errors of some kinds into `BundleError`. what: completes the message "PATH cannot be …"."""
    try:
        yield
    except kinds as error:
        raise BundleError(f"{path} cannot be {what}: {error}") from error


def sha256_of(path: Path) -> str:
    """Return the SHA-256 of a file, in hexadecimal digits."""
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def _files(folder: Path, apart: str | None) -> list[str]:
    paths = [path.relative_to(folder) for path in folder.rglob("*") if path.is_file()]
    return sorted(path.as_posix() for path in paths if path.parts[0] != apart)
