"""The bundle at a path that a person gives: the bundle itself, or the run that published it."""

from __future__ import annotations

from pathlib import Path

from index.bundle.manifest import MANIFEST, BundleError
from index.contents import contents_of

BUNDLE = "bundle"  # folder of a run


def find_bundle(path: Path) -> Path:
    """Return the folder of the bundle at `path`; for a run folder, that of its bundle. Nothing is checked or resolved.

    Raises `BundleError` that says what is at `path` instead.
    """
    for folder in (path, path / BUNDLE):
        # A bundle that lacks one of the two is damaged, and opening it says so. An index version has a manifest, too.
        if (folder / "bundle.json").is_file() or (
            (folder / MANIFEST).is_file() and not (folder / "index.json").is_file()
        ):
            return folder
    found = contents_of(path)
    if found == "nothing":
        raise BundleError(f"there is no folder {path}; give a published bundle, or the run that published it")
    if found == "a run folder":
        raise BundleError(
            f"{path} is a run folder without a bundle: its training has not ended, or leaves none"
        )
    said = f"{path} is {found}" if path.is_dir() else f"{path} is a file, which holds {found}"
    raise BundleError(f"{said}, not a bundle; give a published bundle, or the run that published it")
