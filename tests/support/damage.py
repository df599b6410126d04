"""Damage of a bundle that its hashes do not show: files with absurd content, and manifests that fit them."""

from __future__ import annotations

import copy
import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from index.bundle.bundle import INDEX
from index.bundle.manifest import MANIFEST, sha256_of, write_manifest

Place = tuple[str | int, ...]  # of a value in JSON: names and positions
DEEP = "[" * 100_000 + "]" * 100_000
WRONG_NUMBERS: tuple[Any, ...] = (-1, 0, 1.5, 10**9, 10**30, True, None, "x", [[1]])
FEW = 4  # of a longer list or object only so many are looked at: they are alike


def sign(bundle: Path) -> None:
    """Make the manifests of a bundle and of its current index version fit their files again."""
    pointer = bundle / INDEX / "current.json"
    record = json.loads(pointer.read_text("utf-8"))
    version = bundle / INDEX / record["version"]
    for folder, apart in ((version, None), (bundle, INDEX)):
        (folder / MANIFEST).unlink(missing_ok=True)  # it does not list itself
        write_manifest(folder, apart=apart)
    pointer.write_text(json.dumps(record | {"manifest_sha256": sha256_of(version / MANIFEST)}), "utf-8")


def current(bundle: Path) -> Path:
    """Return the folder of the current index version."""
    return bundle / INDEX / str(json.loads((bundle / INDEX / "current.json").read_text("utf-8"))["version"])


def numbers(value: Any, place: Place = ()) -> Iterator[Place]:
    """Yield the places of the numbers in a JSON value, of long lists and objects only a few."""
    if isinstance(value, dict | list):
        parts = list(value.items() if isinstance(value, dict) else enumerate(value))
        if len(parts) > (40 if isinstance(value, dict) else FEW):
            parts = [*parts[: FEW // 2], *parts[-FEW // 2 :]]
        for name, part in parts:
            yield from numbers(part, (*place, name))
    elif isinstance(value, int | float) and not isinstance(value, bool):
        yield place


def replaced(value: Any, place: Place, new: Any) -> Any:
    """Return a copy of a JSON value with another one at a place."""
    changed = copy.deepcopy(value)
    part = changed
    for name in place[:-1]:
        part = part[name]
    part[place[-1]] = new
    return changed
