"""A bundle from a store of objects (S3, Google Cloud, Azure and others), copied by the program rclone and checked."""

from __future__ import annotations

import re
import shutil
import subprocess
from contextlib import suppress
from pathlib import Path

from index.bundle.bundle import Bundle
from index.bundle.manifest import BundleError
from index.files import atomic_folder

RCLONE = "rclone"
_STATS = ("--stats", "10s", "--stats-one-line", "--stats-log-level", "NOTICE")


def fetch(source: str, out: Path, sha256: str, rclone: str = RCLONE) -> bool:
    """Copy a bundle to `out`, whole and checked or not at all. Return False if this very bundle was there already.

    Files that an interrupted copy has brought stay in a hidden folder next to `out`, and are not copied again. What
    turns out to be another bundle, or damaged, is removed.

    source: folder, as rclone names it (`remote:bucket/folder`, or a local path); rclone is configured by its own
        environment variables or file.
    out: missing, an empty folder, or another bundle, which is replaced.
    sha256: `Bundle.sha256` of the bundle that is wanted.
    rclone: the program.
    Raises `BundleError` if it cannot be copied or is not that bundle, `OSError` of the disk.
    """
    if not re.fullmatch(r"[0-9a-f]{64}", sha256):
        raise BundleError(
            f"{sha256!r} is no SHA-256 of a bundle: 64 digits 0 to f; 'gems bundle verify' prints it"
        )
    if out.exists() and (not out.is_dir() or (any(out.iterdir()) and not (out / "bundle.json").is_file())):
        raise BundleError(f"{out} is there and is not a bundle; it is not replaced, name another place")
    with suppress(BundleError):  # a damaged one is replaced
        if (out / "bundle.json").is_file() and Bundle.open(out).sha256() == sha256:
            return False
    copied = out.with_name(f".{out.name}.download")
    copied.mkdir(parents=True, exist_ok=True)
    _copy(source, copied, rclone)
    try:
        found = Bundle.open(copied).sha256()
        if found != sha256:
            raise BundleError(f"the source holds another bundle: its SHA-256 is {found}, and not {sha256}")
    except BundleError:
        shutil.rmtree(copied)
        raise
    with atomic_folder(out, single_writer=True, replace=True) as draft:
        draft.rmdir()
        copied.rename(draft)
    return True


def _copy(source: str, copied: Path, rclone: str) -> None:
    """Make a folder like the source. rclone writes to stderr how far it is, and what fails."""
    try:
        code = subprocess.run([rclone, "sync", *_STATS, "--", source, str(copied)]).returncode
    except OSError as error:
        raise BundleError(f"the program {rclone} cannot be run: {error.strerror}; install rclone") from error
    if code:
        raise BundleError(f"rclone could not copy the bundle (exit code {code}); its own messages say why")
