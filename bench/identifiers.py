"""`python -m bench.identifiers --data DIR --json F`: semantic identifiers by each quantiser, beside each other.

For the items of a data set: use of the codes, collisions and purity of prefixes as `gems index describe` has them,
and how much of the vectors' variance the codes leave. `plain` is residual k-means of all dimensions without a limit
on what a code names. Held out: a tenth of the items, drawn by a fixed seed, is named by codebooks that were fitted
without it, as new items are; how many pairs of a held-out and another item under one prefix share a category.
"""

from __future__ import annotations

import json
import time
from collections.abc import Callable, Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Annotated, Any

import numpy as np
import typer
from numpy.typing import NDArray
from rich.console import Console
from rich.table import Table

from index.catalogue import Catalogue
from index.describe import describe_index
from index.identifiers.codebooks import Codebooks
from index.identifiers.kmeans import fit_kmeans
from index.identifiers.rqvae import fit_rqvae
from index.identifiers.semantic import CAPACITY, numbered
from index.item_index import ItemIndex
from training.cli.quiet import quiet_libraries
from training.config import TrainConfig
from training.data.dataset import DataSet
from training.item_vectors import vector_source

Fit = Callable[[NDArray[np.float32], Sequence[int], int], Codebooks]
HELD_OUT = 0.1

VARIANTS: dict[str, Fit] = {
    "plain": lambda v, sizes, seed: fit_kmeans(v, sizes, np.inf, seed, components=v.shape[1]),
    "plain, balanced": lambda v, sizes, seed: fit_kmeans(v, sizes, CAPACITY, seed, components=v.shape[1]),
    "kmeans, no limit": lambda v, sizes, seed: fit_kmeans(v, sizes, np.inf, seed),
    "kmeans": lambda v, sizes, seed: fit_kmeans(v, sizes, CAPACITY, seed),
    "kmeans, limit 1": lambda v, sizes, seed: fit_kmeans(v, sizes, 1.0, seed),
    "rqvae, no limit": lambda v, sizes, seed: fit_rqvae(v, sizes, np.inf, seed),
    "rqvae": lambda v, sizes, seed: fit_rqvae(v, sizes, CAPACITY, seed),
}


def main(
    data: Annotated[Path, typer.Option(help="folder of a data set")],
    codebooks: Annotated[str, typer.Option(help="codes per level, comma-separated")] = "256,256",
    seed: Annotated[int, typer.Option()] = 0,
    item_vectors: Annotated[Path | None, typer.Option(help="file with vectors; else MiniLM's")] = None,
    json_file: Annotated[Path | None, typer.Option("--json", help="write the figures here")] = None,
) -> None:
    quiet_libraries()
    console = Console()
    sizes = [int(size) for size in codebooks.split(",")]
    dataset = DataSet.load(data)
    catalogue = dataset.catalogue
    vectors = vector_source(TrainConfig(item_vectors=item_vectors), catalogue).make(console)
    figures: dict[str, Any] = {
        "data": dataset.info.name,
        "items": len(catalogue),
        "codebooks": sizes,
        "seed": seed,
    }
    for name, fit in VARIANTS.items():
        with console.status(name):
            figures[name] = _figures(catalogue, vectors, sizes, fit, seed)
    _print(figures, console)
    if json_file is not None:
        json_file.write_text(json.dumps(figures, indent=2) + "\n", "utf-8")


def _figures(
    catalogue: Catalogue, vectors: NDArray[np.float32], sizes: Sequence[int], fit: Fit, seed: int
) -> dict[str, Any]:
    start = time.perf_counter()
    known = fit(vectors, sizes, seed)
    seconds = time.perf_counter() - start
    prefixes = known.quantise(vectors)
    identifiers = numbered(known, prefixes)
    index = ItemIndex.build("bench", "v1", "", catalogue, identifiers.codes)
    found = describe_index(index, identifiers.codebook_sizes, examples=0)
    depths = [asdict(each) for each in found.prefixes[: len(sizes)]]
    return {
        "dimensions": known.levels[0].shape[1],
        "perplexity": [level.perplexity for level in found.levels[: len(sizes)]],
        "used": [level.used for level in found.levels[: len(sizes)]],
        "largest": [level.largest for level in found.levels[: len(sizes)]],
        "purity": [each["purity"] for each in depths],
        "chance": found.chance,
        "colliding_items": depths[-1]["shared"],
        "largest_collision": depths[-1]["largest"],
        "unexplained": _unexplained(vectors, prefixes),
        "held_out": _held_out(catalogue, vectors, sizes, fit, seed),
        "seconds": seconds,
    }


def _unexplained(vectors: NDArray[np.float32], prefixes: NDArray[np.int32]) -> float:
    """Variance within the prefixes, as a share of all: comparable whatever space the codes are in."""
    _, group, count = np.unique(prefixes, axis=0, return_inverse=True, return_counts=True)
    total = np.zeros((len(count), vectors.shape[1]), np.float32)
    np.add.at(total, group, vectors)
    within = vectors - (total / count[:, None])[group]
    return float((within**2).sum() / ((vectors - vectors.mean(0)) ** 2).sum())


def _held_out(
    catalogue: Catalogue, vectors: NDArray[np.float32], sizes: Sequence[int], fit: Fit, seed: int
) -> dict[str, Any]:
    """Names for items that came later: evenness of the first codes, and purity by depth."""
    rows = np.random.default_rng(seed).permutation(len(vectors))
    new, old = np.split(rows, [int(HELD_OUT * len(rows))])
    known = fit(vectors[old], sizes, seed)
    theirs, ours = known.quantise(vectors[new]), known.quantise(vectors[old])
    labels = [frozenset(item.categories) for item in catalogue]
    purity: list[float | None] = []
    for depth in range(1, len(sizes) + 1):
        below: dict[tuple[int, ...], list[int]] = {}
        for row, codes in zip(old.tolist(), ours[:, :depth].tolist(), strict=True):
            below.setdefault(tuple(codes), []).append(row)
        alike = [
            bool(labels[row] & labels[other])
            for row, codes in zip(new.tolist(), theirs[:, :depth].tolist(), strict=True)
            for other in below.get(tuple(codes), [])
            if labels[row] and labels[other]
        ]
        purity.append(float(np.mean(alike)) if alike else None)
    share = np.bincount(theirs[:, 0], minlength=sizes[0]).max() / len(new)
    return {"purity": purity, "largest_share": float(share)}


def _print(figures: dict[str, Any], console: Console) -> None:
    table = Table(
        "quantiser", "dim.", "perplexity", "most items", "colliding", "worst", "unexplained", "purity", "held out", "s"
    )  # fmt: skip
    for name in VARIANTS:
        each = figures[name]
        table.add_row(
            name,
            f"{each['dimensions']}",
            " ".join(f"{value:.0f}" for value in each["perplexity"]),
            " ".join(map(str, each["largest"])),
            f"{each['colliding_items']}",
            f"{each['largest_collision']}",
            f"{each['unexplained']:.3f}",
            _shares(each["purity"]),
            _shares(each["held_out"]["purity"]),
            f"{each['seconds']:.0f}",
        )
    console.print(table)


def _shares(values: Sequence[float | None]) -> str:
    return " ".join("-" if value is None else f"{value:.3f}" for value in values)


if __name__ == "__main__":
    typer.run(main)
