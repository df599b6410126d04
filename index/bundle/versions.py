"""Versions of the item index in a bundle, and a pointer to the current one.

    index/v1/ …, index/v2/ …     complete versions, each with its manifest
    index/current.json           name of the current version, and the SHA-256 of its manifest

A new version is written as a whole (see `atomic_folder`). Then `current.json` is replaced. A reader therefore finds the
old version or the new one at any moment, also after a crash.
"""

from __future__ import annotations

import fcntl
import json
import os
import re
import shutil
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

from index.bundle.index_record import IndexRecord
from index.bundle.manifest import MANIFEST, BundleError, refusing, sha256_of, verify, write_manifest
from index.files import atomic_folder, atomic_write
from index.records import Record

POINTER = "current.json"
NAME = re.compile(r"v([1-9]\d*)")


class Versions:
    """The versions in a bundle's `index/` folder."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder

    def names(self) -> list[str]:
        """Return the names of all complete versions, oldest first."""
        found = [path.name for path in self.folder.iterdir() if NAME.fullmatch(path.name)]
        return sorted(found, key=lambda name: int(name[1:]))

    def current(self) -> Path:
        """Check the current version and return its folder. Raises `BundleError` that names the damaged file."""
        name, manifest = self._pointer()
        path = self.folder / name
        verify(path)
        if sha256_of(path / MANIFEST) != manifest:
            raise BundleError(
                f"{self.folder / POINTER} is damaged, or {path / MANIFEST} is: they do not fit each other"
            )
        return path

    def current_name(self) -> str:
        """Return the name of the current version without a check. Raises `BundleError` for a damaged pointer."""
        return self._pointer()[0]

    def describe(self, name: str) -> IndexRecord:
        """Check a version and return the content of its `index.json`. Raises `BundleError` if it is damaged."""
        with refusing(self.folder / name, "opened"):
            verify(self.folder / name)
            return IndexRecord.load(self.folder / name)

    def _pointer(self) -> tuple[str, str]:
        """Return the name of the current version, and the SHA-256 of its manifest."""
        pointer = self.folder / POINTER
        try:
            record = Record.read(pointer)
            name, manifest = record.text("version"), record.text("manifest_sha256")
        except (OSError, ValueError) as error:
            raise BundleError(f"{pointer} is damaged: {error}") from error
        if name not in self.names():
            raise BundleError(f"{pointer} is damaged: it names no version")
        return name, manifest

    def next_name(self) -> str:
        """Return the name of the next version."""
        names = self.names()
        return f"v{int(names[-1][1:]) + 1 if names else 1}"

    def publish(self, name: str, write: Callable[[Path], None]) -> None:
        """Make version `name` and point to it. write: fills the folder that it is called with."""
        with atomic_folder(self.folder / name, single_writer=True) as draft:
            write(draft)
            write_manifest(draft)
        self.point_to(name)

    def point_to(self, name: str) -> None:
        """Make a version the current one. Raises `BundleError` if it is missing or damaged."""
        path = self.folder / name
        if name not in self.names():
            known = ", ".join(self.names()) or "none"
            raise BundleError(f"there is no index version {name!r}; there are: {known}")
        verify(path)
        record = {"version": name, "manifest_sha256": sha256_of(path / MANIFEST)}
        with atomic_write(self.folder / POINTER, single_writer=True) as draft:
            draft.write_text(json.dumps(record), "utf-8")

    def prune(self, keep: int, spared: str) -> list[str]:
        """Delete old versions and return their names. The newest `keep` and the version `spared` stay."""
        names = self.names()
        old = [name for name in names[:-keep] if name != spared]
        for name in old:
            # renamed first: readers must not find half a version
            os.rename(self.folder / name, self.folder / f".{name}.gone")
        for path in self.folder.glob(".*.gone"):
            shutil.rmtree(path)
        return old

    @contextmanager
    def locked(self) -> Iterator[None]:
        """Keep other writers out during the block. Raises `BundleError` if another process is writing."""
        descriptor = os.open(self.folder / ".lock", os.O_RDWR | os.O_CREAT, 0o644)
        try:
            fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError as error:
            os.close(descriptor)
            raise BundleError(
                f"{self.folder}: another update is at work; try again when it is done"
            ) from error
        try:
            yield
        finally:
            os.close(descriptor)
