"""Files on disk: reading stored arrays, and writing a file or a folder as a whole or not at all.

A writer fills a hidden draft next to the target. The draft is synced to disk, renamed to the target, and the rename is
synced as well. A reader finds the old content or the new one and never a part of it, even if the writer is killed or
the machine loses power.
"""

from __future__ import annotations

import errno
import os
import shutil
import uuid
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from index.records import refuse_special


def read_array(path: Path, *kinds: type[np.generic]) -> NDArray[Any]:
    """Read a one-dimensional `.npy` file into memory. kinds: element types that it may have.

    It is not memory-mapped: a file that is later shortened in place would end the process with SIGBUS.
    Raises `ValueError` with the name of the file if it is missing or is not such an array.
    """
    refuse_special(path)
    try:
        with path.open("rb") as file:
            stored: NDArray[Any] = np.lib.format.read_array(file, allow_pickle=False)
    except Exception as error:  # NumPy raises whatever a wrong header leads to
        raise ValueError(f"{path} cannot be read: {error}") from error
    if stored.ndim != 1 or stored.dtype not in map(np.dtype, kinds):
        wanted = " or ".join(np.dtype(kind).name for kind in kinds)
        raise ValueError(f"{path} must hold a list of {wanted}, not {stored.dtype} {list(stored.shape)}")
    return stored


@contextmanager
def atomic_write(path: Path, *, single_writer: bool = False) -> Iterator[Path]:
    """Yield a draft file to write; put it at `path` when the block ends without an exception.

    path: a link stays a link, and the file that it points to is replaced. Missing parent folders are made. `OSError`
        if it is a folder or a device.
    single_writer: whether nobody else writes `path` at the same time. Then the draft has a fixed name, and the next
    write removes the draft that a killed process has left. Otherwise each draft has a name of its own.
    The file gets the permissions that `open(path, "w")` would give it. After any exception the draft is removed and
    `path` is unchanged; the exception, such as `OSError` for a full disk, goes to the caller. If only the last sync
    fails, the new content stays in place.
    """
    path = _target(path)
    _refuse_others(path)
    draft = _draft_of(path, single_writer)
    try:
        draft.unlink(missing_ok=True)
        draft.touch(exist_ok=False)  # gives the permissions of a new file
        mode = (path if path.exists() else draft).stat().st_mode & 0o7777
        yield draft
        if draft.stat().st_mode & 0o7777 != mode:  # safetensors makes a file of its own, with 0600
            draft.chmod(mode)
        sync(draft)
        os.replace(draft, path)
    except BaseException:
        with suppress(OSError):
            draft.unlink(missing_ok=True)
        raise
    sync(path.parent)


@contextmanager
def atomic_folder(path: Path, *, single_writer: bool = False, replace: bool = False) -> Iterator[Path]:
    """Yield an empty draft folder to fill; put it at `path` when the block ends without an exception.

    path: must be missing or an empty folder, unless `replace` is set. A link stays a link, and the folder that it
    points to is replaced. Missing parent folders are made.
    single_writer: see `atomic_write`.
    replace: whether a folder at `path` is moved away and deleted. POSIX cannot swap two folders in one step: a process
    that is killed between the two renames leaves the old folder as `.NAME….old.draft` and nothing at `path`.
    After any exception the draft is removed and `path` is unchanged; the exception goes to the caller, `OSError` if
    `path` is in use. If only the last sync fails, the new content stays in place.
    """
    path = _target(path)
    draft = _draft_of(path, single_writer)
    old = draft.with_suffix(".old.draft")
    try:
        if draft.exists():
            shutil.rmtree(draft)
        draft.mkdir()
        yield draft
        for part in [*draft.rglob("*"), draft]:
            sync(part)
        if replace and path.exists():
            shutil.rmtree(old, ignore_errors=True)
            os.rename(path, old)
        os.rename(draft, path)
    except BaseException:
        if old.exists() and not path.exists():
            os.rename(old, path)
        shutil.rmtree(draft, ignore_errors=True)
        raise
    sync(path.parent)
    shutil.rmtree(old, ignore_errors=True)


def try_write(path: Path, *, folder: bool = False) -> None:
    """Try whether a file, or a folder of files, could be written at `path`; leave everything as it is.

    path: what is there may be replaced, or, with `folder`, may be added to. Parent folders may be missing.
    Raises `OSError` with the reason if it could not be written.
    """
    path = Path(os.path.realpath(path))
    place = path / "file" if folder else path
    if not folder:
        _refuse_others(path)
    elif path.exists() and not path.is_dir():
        raise NotADirectoryError(errno.ENOTDIR, "it is a file, not a folder", str(path))
    inside = place.parent
    while not inside.exists():  # folders are not made: another process may be about to use them
        inside = inside.parent
    draft = _draft_of(inside / path.name, single_writer=False)
    draft.touch(exist_ok=False)
    draft.unlink()


def sync(path: Path) -> None:
    """Flush the content of a file, or the list of names in a folder, to disk. Raises `OSError`."""
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def _target(path: Path) -> Path:
    """Return the path behind all links, with its parent folder made."""
    path = Path(os.path.realpath(path))
    path.parent.mkdir(parents=True, exist_ok=True)
    return path


def _refuse_others(path: Path) -> None:
    """Raise `OSError` if there is something at `path` that no file may replace."""
    if path.is_dir():
        raise IsADirectoryError(errno.EISDIR, "it is a folder, not a file", str(path))
    if path.exists() and not path.is_file():
        raise OSError(errno.EINVAL, "it is a device or a pipe, not a file", str(path))


def _draft_of(path: Path, single_writer: bool) -> Path:
    """Return the hidden name next to `path` under which it is written."""
    own = "" if single_writer else f".{uuid.uuid4().hex[:8]}"
    return path.with_name(f".{path.name}{own}.draft")
