"""Paths on the command line: bundles are found, and places to write are tried, before a command begins."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from index.bundle.locate import find_bundle
from training.outputs import OutputError, check_output


def output_file(path: Path | None) -> Path | None:
    """Return the path of a file to write. Raises `OutputError` if it cannot be written there."""
    if path is not None:
        check_output(path)
        _stay_out_of_bundles(path)
    return path


def output_folder(path: Path | None) -> Path | None:
    """Return the path of a folder to write. Raises `OutputError` if it cannot be written there."""
    if path is not None:
        check_output(path, folder=True)
        _stay_out_of_bundles(path)
    return path


def output_bundle(path: Path | None) -> Path | None:
    """Return the path of a bundle to write, which may replace one. Raises `OutputError` if it cannot be written."""
    if path is not None:
        check_output(path, folder=True)
        _stay_out_of_bundles(path, but=path)
    return path


def input_bundle(path: Path | None) -> Path | None:
    """Return the folder of the bundle at a path, which may be that of a run. Raises `BundleError` if there is none."""
    return None if path is None else find_bundle(path)


def _stay_out_of_bundles(path: Path, but: Path | None = None) -> None:
    """Raise `OutputError` for a path in a bundle, which counts as damaged if it holds a file that it does not list.

    but: a folder that may be one.
    """
    whole = path.resolve()
    folders = [folder for folder in (whole, *whole.parents) if but is None or folder != but.resolve()]
    inside = next((folder for folder in folders if (folder / "bundle.json").is_file()), None)
    if inside is not None:
        raise OutputError(f"{path} is in the bundle {inside}, which it would damage; choose another place")


JsonFile = Annotated[
    Path | None, typer.Option("--json", help="write the figures to this file", callback=output_file)
]
BundlePath = Annotated[
    Path, typer.Argument(help="folder of a published bundle, or of its run", callback=input_bundle)
]
