"""`python -m bench.identifiers --data DIR --json F`: a comparison of semantic identifiers from each quantiser.

Figures for the items of a data set are the use of codes, collisions and purity of prefixes (as in `gems index
describe`), and the share of the vectors' variance that the codes do not explain. `plain` is residual k-means on all
dimensions, without a limit on the items of a code.

    held out    A tenth of the items, drawn by a fixed seed, gets identifiers from codebooks that were fitted without
                it, like new items. The figure is the share of pairs of a held-out and another item under one prefix
                that have a category in common.
    followed    The share of users whose last two items have a prefix in common. No vectors are trained on these items.
"""

from __future__ import annotations

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

from index.bundle.describe import describe_index
from index.bundle.item_index import ItemIndex
from index.catalogue import Catalogue
from index.identifiers.codebooks import Codebooks
from index.identifiers.quantisers import kmeans, letter, product, rqvae
from index.identifiers.schemes.semantic import CAPACITY, numbered
from training.cli.common.command import run_command
from training.cli.common.numbers import Seed, whole_numbers
from training.cli.common.paths import JsonFile, output_folder
from training.cli.common.quiet import quiet_libraries
from training.config import TrainConfig
from training.data.dataset import DataSet
from training.data.item_vectors import vector_source
from training.data.splits import leave_one_out
from training.errors import UserError
from training.outputs import write_json
from training.prepare.behaviour import behaviour_source
from training.prepare.fused_vectors import fused_source
from training.settings import MOST

Vectors = NDArray[np.float32]
# vectors of the items, of their behaviour, sizes of codebooks, seed
Fit = Callable[[Vectors, Vectors | None, Sequence[int], int], Codebooks]
HELD_OUT = 0.1

VARIANTS: dict[str, Fit] = {
    "plain": lambda v, b, sizes, seed: kmeans.fit(v, sizes, np.inf, seed, components=v.shape[1]),
    "plain, balanced": lambda v, b, sizes, seed: kmeans.fit(v, sizes, CAPACITY, seed, components=v.shape[1]),
    "kmeans, no limit": lambda v, b, sizes, seed: kmeans.fit(v, sizes, np.inf, seed),
    "kmeans": lambda v, b, sizes, seed: kmeans.fit(v, sizes, CAPACITY, seed),
    "kmeans, limit 1": lambda v, b, sizes, seed: kmeans.fit(v, sizes, 1.0, seed),
    "rqvae, no limit": lambda v, b, sizes, seed: rqvae.fit(v, sizes, np.inf, seed),
    "rqvae": lambda v, b, sizes, seed: rqvae.fit(v, sizes, CAPACITY, seed),
    "product": lambda v, b, sizes, seed: product.fit(v, sizes, CAPACITY, seed),
    "letter": lambda v, b, sizes, seed: letter.fit(v, sizes, CAPACITY, seed, behaviour=b),
    "letter, no alignment": lambda v, b, sizes, seed: letter.fit(
        v, sizes, CAPACITY, seed, behaviour=b, alignment=0.0
    ),
}


def main(
    data: Annotated[Path, typer.Option(help="folder of a data set")],
    codebooks: Annotated[str, typer.Option(help="codes per level, comma-separated")] = "256,256",
    seed: Seed = 0,
    item_vectors: Annotated[Path | None, typer.Option(help="file with vectors; else MiniLM's")] = None,
    fused: Annotated[
        Path | None,
        typer.Option(
            help="fuse the vectors with behaviour (AlphaFuse), by a training in this folder",
            callback=output_folder,
        ),
    ] = None,
    behaviour: Annotated[
        Path | None,
        typer.Option(help="LETTER too: its SASRec is trained in this folder", callback=output_folder),
    ] = None,
    fused_epochs: Annotated[
        int, typer.Option(min=1, max=MOST, help="with --fused or --behaviour: epochs at most")
    ] = 40,
    variant: Annotated[list[str] | None, typer.Option(help="only these; may be repeated")] = None,
    json_file: JsonFile = None,
) -> None:
    quiet_libraries()
    if variant is not None and not set(variant) <= set(VARIANTS):
        raise UserError(f"variants are {'; '.join(VARIANTS)}")
    if behaviour is None and any("letter" in name for name in variant or []):
        raise UserError("letter follows behaviour: name a folder for its training with --behaviour")
    console = Console()
    sizes = whole_numbers(codebooks)
    dataset = DataSet.load(data)
    catalogue = dataset.catalogue
    identifiers = {"vectors": item_vectors, "fused_epochs": fused_epochs}
    config = TrainConfig.combined({"identifiers": identifiers, "seed": seed, "threads": 1})
    if fused is None:
        source = vector_source(config, catalogue)
    else:
        source = fused_source(config, data, dataset, leave_one_out(dataset), fused / "prepared", console)
    made = source.make(console)
    vectors = made.vectors
    unchosen = vectors if made.later is None else vectors * made.later.weight.any(0)
    learned = None
    if behaviour is not None:
        learned = behaviour_source(config, data, dataset, leave_one_out(dataset), behaviour / "prepared")(
            console
        )
    last = np.array([[e.item for e in user.events[-2:]] for user in dataset.users if len(user.events) > 2])
    figures: dict[str, Any] = {
        "data": dataset.info.name,
        "items": len(catalogue),
        "codebooks": sizes,
        "seed": seed,
    }
    for name in variant or [name for name in VARIANTS if learned is not None or "letter" not in name]:
        fit = VARIANTS[name]
        with console.status(name):
            prefixes, figures[name] = _figures(catalogue, vectors, learned, sizes, fit, seed)
            figures[name]["held_out"] = _held_out(catalogue, vectors, learned, unchosen, sizes, fit, seed)
            figures[name]["followed"] = [
                float((prefixes[last[:, 0], :depth] == prefixes[last[:, 1], :depth]).all(1).mean())
                for depth in range(1, len(sizes) + 1)
            ]
    _print(figures, console)
    if json_file is not None:
        write_json(json_file, figures)


def _figures(
    catalogue: Catalogue,
    vectors: Vectors,
    behaviour: Vectors | None,
    sizes: Sequence[int],
    fit: Fit,
    seed: int,
) -> tuple[NDArray[np.int32], dict[str, Any]]:
    """Return prefixes, int32 [N, levels], and their figures."""
    start = time.perf_counter()
    known = fit(vectors, behaviour, sizes, seed)
    seconds = time.perf_counter() - start
    prefixes = known.quantise(vectors)
    identifiers = numbered(known, prefixes)
    index = ItemIndex.build("bench", "v1", "", catalogue, identifiers.codes)
    found = describe_index(index, identifiers.codebook_sizes, examples=0)
    depths = [asdict(each) for each in found.prefixes[: len(sizes)]]
    return prefixes, {
        "dimensions": known.levels[0].shape[1],
        "perplexity": [level.perplexity for level in found.levels[: len(sizes)]],
        "used": [level.used for level in found.levels[: len(sizes)]],
        "largest": [level.largest for level in found.levels[: len(sizes)]],
        "purity": [each["purity"] for each in depths],
        "chance": found.chance,
        "colliding_items": depths[-1]["shared"],
        "largest_collision": depths[-1]["largest"],
        "unexplained": _unexplained(vectors, prefixes),
        "seconds": seconds,
    }


def _unexplained(vectors: NDArray[np.float32], prefixes: NDArray[np.int32]) -> float:
    """Return the variance within prefixes as a share of the whole, measured in the space of `vectors`."""
    _, group, count = np.unique(prefixes, axis=0, return_inverse=True, return_counts=True)
    total = np.zeros((len(count), vectors.shape[1]), np.float32)
    np.add.at(total, group, vectors)
    within = vectors - (total / count[:, None])[group]
    return float((within**2).sum() / ((vectors - vectors.mean(0)) ** 2).sum())


def _held_out(
    catalogue: Catalogue,
    vectors: Vectors,
    behaviour: Vectors | None,
    unchosen: Vectors,
    sizes: Sequence[int],
    fit: Fit,
    seed: int,
) -> dict[str, Any]:
    """Return figures of held-out items: the largest share of a first code, and purity by depth.

    unchosen: vectors that new items have, float32 [N, d].
    """
    rows = np.random.default_rng(seed).permutation(len(vectors))
    new, old = np.split(rows, [int(HELD_OUT * len(rows))])
    known = fit(vectors[old], None if behaviour is None else behaviour[old], sizes, seed)
    theirs, ours = known.quantise(unchosen[new]), known.quantise(vectors[old])
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
        "quantiser", "dim.", "perplexity", "most items", "colliding", "worst", "unexplained", "purity", "held out",
        "followed", "s",
    )  # fmt: skip
    for name in (name for name in VARIANTS if name in figures):
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
            _shares(each["followed"]),
            f"{each['seconds']:.0f}",
        )
    console.print(table)


def _shares(values: Sequence[float | None]) -> str:
    return " ".join("-" if value is None else f"{value:.3f}" for value in values)


if __name__ == "__main__":
    run_command(main, "bench.identifiers")
