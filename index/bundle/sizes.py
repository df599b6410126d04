"""The disk space of each part of a bundle."""

from __future__ import annotations

from pathlib import Path

from index.bundle.bundle import CODEBOOKS, INDEX, SEARCH_CODEBOOKS
from index.bundle.item_index import SEARCH
from index.bundle.versions import Versions


def bundle_sizes(path: Path) -> dict[str, int]:
    """Return the bytes of each part. Their sum is the size of the bundle.

    The parts `catalogue`, `trie` and `filters` are those of the current version of the index.
    """
    current = Versions(path / INDEX).current().relative_to(path).parts
    parts = dict.fromkeys(
        ("weights", "tokenizer and settings", "codebooks", "catalogue", "trie", "filters", "other"), 0
    )
    parts |= {"other index versions": 0}
    for file in path.rglob("*"):
        if file.is_file():
            parts[_part(file.relative_to(path).parts, current)] += file.stat().st_size
    return parts


def _part(file: tuple[str, ...], current: tuple[str, ...]) -> str:
    if file[: len(current)] == current:
        inner = next(part for part in file[len(current) :] if part != SEARCH)
        return inner if inner in ("catalogue", "trie", "filters") else "other"
    if file[0] == INDEX:
        return "other index versions" if len(file) > 2 else "other"
    if file[0] in (CODEBOOKS, SEARCH_CODEBOOKS):
        return "codebooks"
    if file[-1].endswith(".safetensors"):
        return "weights"
    return "other" if file[0] in ("manifest.json", "bundle.json") else "tokenizer and settings"
