"""`python -m bench.trie --json F`: the trie at catalogue scale, compared with marisa-trie and nested Python dicts.

Identifiers are random with equally likely codes. This is the worst case for size, because almost no prefix is shared.
An expansion finds all children of N nodes of depth 1 (a beam after its first code): position in the beam, child, and
code. `filtered` allows a random 1% of the items. All figures are medians from one process.
"""

from __future__ import annotations

import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import Annotated, Any

import marisa_trie
import numpy as np
import typer
from numpy.typing import NDArray
from rich.console import Console
from rich.table import Table

from bench.clock import milliseconds
from index.trie.allowed import Allowed, SlotSet
from index.trie.trie import Trie
from training.cli.common.command import run_command
from training.cli.common.numbers import Seed
from training.cli.common.paths import JsonFile
from training.outputs import write_json
from training.settings import MOST

BEAMS = (50, 256)
SHARE = 0.01
PLANE = 0x10000  # offset that maps codes to characters beyond the surrogates


def main(
    json_file: JsonFile = None,
    items: Annotated[int, typer.Option(min=1000, max=MOST)] = 10_000_000,
    levels: Annotated[int, typer.Option(min=2, max=64)] = 4,
    codebook: Annotated[int, typer.Option(min=2, max=65536, help="codes of each level")] = 65536,
    peers: Annotated[bool, typer.Option(help="measure marisa-trie and nested dicts, too")] = True,
    seed: Seed = 0,
) -> None:
    console = Console()
    rng = np.random.default_rng(seed)
    codes = rng.integers(0, codebook, (items, levels), dtype=np.uint16)
    start = time.perf_counter()
    trie = Trie.build(codes)
    figures: dict[str, Any] = {
        "items": items, "levels": levels, "codebook": codebook,
        "build_seconds": time.perf_counter() - start,
        "bytes_per_item": trie.node_bytes / items,
        "leaf_map_bytes_per_item": trie.item_bytes / items,
    }  # fmt: skip
    with tempfile.TemporaryDirectory() as folder:
        trie.save(Path(folder))
        figures["open_ms"] = milliseconds(lambda: Trie.open(Path(folder), checked=True), 9)
        trie = Trie.open(Path(folder), checked=True)  # as the engine's process opens it
        figures["check_ms"] = milliseconds(trie.check, 3)  # as the API does, on a thread
        start = time.perf_counter()
        chosen = SlotSet.of(rng.random(items) < SHARE)
        figures["filter_build_ms"] = 1000 * (time.perf_counter() - start)
        allowed = Allowed.of(trie, chosen)
        beams = {w: np.sort(rng.choice(len(trie.code[0]), min(w, len(trie.code[0])), False)) for w in BEAMS}
        figures["children"] = {str(w): trie.child_count(1, nodes) for w, nodes in beams.items()}
        figures["expand_ms"] = _times(beams, lambda nodes: trie.expand(1, nodes))
        figures["filtered_expand_ms"] = _times(beams, lambda nodes: allowed.expand(1, nodes))
        if peers:
            first_codes = {w: trie.code[0][nodes].tolist() for w, nodes in beams.items()}
            for name, build in (("dict", _dict_expansion), ("marisa", _marisa_expansion)):
                console.print(f"building {name}")
                start = time.perf_counter()
                expand = build(codes)
                figures[f"{name}_build_seconds"] = time.perf_counter() - start
                _check(trie, beams[BEAMS[0]], expand(first_codes[BEAMS[0]]))
                figures[f"{name}_expand_ms"] = _times(first_codes, expand)
                figures[f"speedup_over_{name}"] = {
                    w: figures[f"{name}_expand_ms"][w] / figures["expand_ms"][w] for w in figures["expand_ms"]
                }
                del expand
    _print(figures, console)
    if json_file is not None:
        write_json(json_file, figures)


def _times(beams: dict[int, Any], expand: Callable[[Any], Any]) -> dict[str, float]:
    return {str(width): milliseconds(lambda b=beam: expand(b), 30) for width, beam in beams.items()}  # type: ignore[misc]


def _dict_expansion(codes: NDArray[np.uint16]) -> Callable[[list[int]], list[tuple[int, int]]]:
    """Return an expansion with nested dicts: first codes → (position, code) of every child.

    codes: uint16 [N, levels].
    """
    root: dict[int, Any] = {}
    for row in codes:
        node = root
        for code in row.tolist():
            node = node.setdefault(code, {})
    return lambda firsts: [(k, code) for k, first in enumerate(firsts) for code in root[first]]


def _marisa_expansion(codes: NDArray[np.uint16]) -> Callable[[list[int]], list[tuple[int, int]]]:
    """Return the same expansion with marisa-trie.

    It has no call for the children of a node, so they are collected from all keys below the node.
    """
    words = (codes.astype(np.uint32) + PLANE).view(f"<U{codes.shape[1]}").ravel()
    trie = marisa_trie.Trie(words.tolist())

    def expand(firsts: list[int]) -> list[tuple[int, int]]:
        return [
            (k, ord(letter) - PLANE)
            for k, first in enumerate(firsts)
            for letter in {key[1] for key in trie.iterkeys(chr(first + PLANE))}
        ]

    return expand


def _check(trie: Trie, nodes: NDArray[np.int64], theirs: list[tuple[int, int]]) -> None:
    """Raise `SystemExit` unless the peer finds the same children; else times would not be comparable."""
    parent, _, code = trie.expand(1, nodes)
    if sorted(theirs) != list(zip(parent.tolist(), code.tolist(), strict=True)):
        raise SystemExit("the tries disagree")


def _print(figures: dict[str, Any], console: Console) -> None:
    table = Table("figure", "value")
    for name, value in figures.items():
        pairs = value.items() if isinstance(value, dict) else [("", value)]
        for width, number in pairs:
            table.add_row(f"{name}.{width}" if width else name, f"{number:,.3f}")
    console.print(table)


if __name__ == "__main__":
    run_command(main, "bench.trie")
