"""`python -m bench.scale --items 1000000 --json F`: a large catalogue, from its files to a server that answers.

Items (title, categories, price, brand), their vectors (64 numbers in clusters) and a log are drawn. Each step runs in a
process of its own, so that its time and its peak memory are its own: `import` is `gems data import`, `train` a whole
`gems train` of a tiny model with two steps, `parts` the making of each part of the index alone, `update` is `gems index
update` with new items, and `serve` a server from its start to its first answer, and its memory.
"""

from __future__ import annotations

import json
import os
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import Annotated, Any

import numpy as np
import polars as pl
import psutil
import torch
import typer
from rich.console import Console

from bench.data import REPORT, draw_files
from training.cli.common.command import run_command
from training.cli.common.paths import JsonFile, output_folder
from training.cli.common.quiet import quiet_libraries
from training.outputs import write_json
from training.run.server_process import ServerProcess

DIMENSIONS = 64
CLUSTERS = 4096
SPREAD = 0.5  # of a cluster, relative to the distance between clusters
LOG_SHARE = 0.2  # interactions for each item
UPDATED = 0.01  # new items, as a share
SETTINGS: dict[str, Any] = {
    "backbone": {"name": "scratch", "hidden": 32, "layers": 1, "heads": 2, "text_vocabulary": 2000},
    "identifiers": {"scheme": "semantic", "codebooks": [128, 128, 128]},
    "sequence": {"max_events": 10, "max_tokens": 128},
    "optimiser": {"batch_size": 64},
    "validation": {"cases": 50, "conflict_cases": 0, "every": 100},
    "method": "full",
}
STEPS = 2


def draw(folder: Path, items: int) -> None:
    """Write the files of the catalogue, of the log, and of later items, with their vectors."""
    draw_files(folder, max(2000, round(LOG_SHARE * items)), items, formats=("parquet",))
    rng = np.random.default_rng(1)
    centres = rng.standard_normal((CLUSTERS, DIMENSIONS), np.float32)

    def vectors(count: int) -> np.ndarray[Any, np.dtype[np.float32]]:
        near = centres[rng.integers(0, CLUSTERS, count)]
        near += SPREAD * rng.standard_normal((count, DIMENSIONS), np.float32)
        unit: np.ndarray[Any, np.dtype[np.float32]] = near / np.linalg.norm(near, axis=1, keepdims=True)
        return unit

    np.save(folder / "vectors.npy", vectors(items))
    later = pl.read_parquet(folder / "items.parquet").head(max(1, round(UPDATED * items)))
    later.with_columns(item_id="new" + pl.col("item_id")).write_parquet(folder / "later.parquet")
    np.save(folder / "later.npy", vectors(len(later)))


def import_step(folder: Path) -> None:
    """Import the files as a data set."""
    from training.data.importing.importer import import_files

    files = (folder / "items.parquet", folder / "interactions.parquet")
    import_files(*files, "scale")[0].save(folder / "data", force=True)


def train_step(folder: Path) -> None:
    """Train a tiny model for a few steps and publish it."""
    from training.config import TrainConfig
    from training.pipeline import train

    quiet_libraries()
    people = pl.read_parquet(folder / "data" / "interactions.parquet", columns=["user_id"]).n_unique()
    settings = {name: dict(group) if isinstance(group, dict) else group for name, group in SETTINGS.items()}
    settings["identifiers"]["vectors"] = str(folder / "vectors.npy")
    settings["optimiser"]["epochs"] = STEPS * settings["optimiser"]["batch_size"] / people
    config = TrainConfig.combined(settings | {"threads": 1, "device": "cpu"})
    train(folder / "data", folder / "run", config, console=Console(stderr=True))


def parts_step(folder: Path) -> dict[str, float]:
    """Make each part of the index again, alone. Return CPU seconds (a busy machine changes them little)."""
    from index.bundle.bundle import Bundle
    from index.catalogue import Catalogue
    from index.identifiers.identifiers import ItemsToName
    from index.identifiers.registry import load_scheme
    from index.pool.lexical import LexicalIndex
    from index.popularity import Popularity
    from index.titles import TitleIndex
    from index.trie.filters import Filters
    from index.trie.trie import Trie
    from training.config import TrainConfig

    quiet_libraries()
    bundle = Bundle.open(folder / "run" / "bundle")
    catalogue, trie, pool = bundle.index.catalogue, bundle.index.trie, bundle.index.pool
    titles = [item.title for item in catalogue]
    assert pool is not None
    config = TrainConfig.combined(SETTINGS)
    named = ItemsToName(titles, np.load(folder / "vectors.npy"), bundle.tokenizer)
    scheme = load_scheme("semantic")
    items_file = bundle.path / "index" / bundle.index.version / "catalogue" / "items.jsonl"
    codes = trie.codes()
    parts: dict[str, Callable[[], object]] = {
        "read items": lambda: Catalogue.load(items_file),
        "identifiers": lambda: scheme.identifiers(named, config.for_scheme),
        "trie": lambda: Trie.build(codes),
        "filters": lambda: Filters.build(catalogue, trie),
        "popularity": lambda: Popularity.of(pool.counts, len(catalogue)),
        "titles": lambda: TitleIndex.build(titles),
        "words": lambda: LexicalIndex.build(catalogue),
        "open the bundle": lambda: Bundle.open(bundle.path),
    }
    return {name: _seconds(make) for name, make in parts.items()}


def update_step(folder: Path) -> None:
    """Add the later items to the bundle."""
    from training.cli.commands.index import update_command

    update_command(folder / "run" / "bundle", items=folder / "later.parquet", vectors=folder / "later.npy")


STEPS_OF = {"import": import_step, "train": train_step, "parts": parts_step, "update": update_step}


def serve(folder: Path) -> dict[str, float]:
    """Start a server and ask it. Return seconds, and memory of all its processes (shared parts counted once)."""
    began = time.perf_counter()
    with ServerProcess(folder / "run" / "bundle", patience=600) as server:
        ready = time.perf_counter() - began
        process = psutil.Process(server.process.pid)
        tree = [process, *process.children(recursive=True)]
        cpu = sum(sum(each.cpu_times()[:2]) for each in tree)
        server.post("/v1/recommend", {"history": [{"item_id": "item1"}], "limit": 10})
        answered = time.perf_counter() - began
        for path in ("/v1/search", "/v1/recommend"):
            body = {"query": "word1 word2"} if path.endswith("search") else {}
            server.post(path, {"history": [{"item_id": "item2"}], "limit": 10, **body})
        memory = [each.memory_full_info().pss for each in tree]
    return {
        "seconds_to_ready": round(ready, 2),
        "cpu_seconds_to_ready": round(cpu, 2),
        "seconds_to_first_answer": round(answered, 2),
        "memory_mb": round(sum(memory) / 1e6),
        "largest_process_mb": round(max(memory) / 1e6),
    }


def measured(step: str, folder: Path) -> dict[str, Any]:
    """Run a step in a process of its own. Return its seconds, its peak memory in MB, and what it returns."""
    code = (
        "import sys, time, json\nfrom pathlib import Path\nimport bench.scale\nbegin = time.perf_counter()\n"
        "print(json.dumps(bench.scale.STEPS_OF[sys.argv[1]](Path(sys.argv[2]))))" + REPORT
    )
    done = subprocess.run([sys.executable, "-c", code, step, str(folder)], stdout=subprocess.PIPE, text=True)
    if done.returncode:
        raise SystemExit(f"the step {step!r} failed")
    *_, found, report = done.stdout.splitlines()
    seconds, cpu, memory = json.loads(report)
    figures = {"seconds": round(seconds, 2), "cpu_seconds": round(cpu, 2), "peak_mb": round(memory / 1e6)}
    return figures | ({"parts": json.loads(found)} if found != "null" else {})


def _seconds(make: Callable[[], object]) -> float:
    began = time.process_time()
    make()
    return round(time.process_time() - began, 2)


def main(
    items: Annotated[int, typer.Option(min=100, max=50_000_000, help="items of the catalogue")] = 100_000,
    out: Annotated[
        Path | None,
        typer.Option(
            help="folder where the files stay; steps whose output is there are not repeated",
            callback=output_folder,
        ),
    ] = None,
    json_file: JsonFile = None,
) -> None:
    """Measure every step from the files of a catalogue to a server that answers."""
    console = Console()
    figures: dict[str, Any] = {
        "items": items,
        "cores": os.cpu_count(),
        "instructions": torch.backends.cpu.get_cpu_capability(),
    }

    def tell(step: str, found: dict[str, Any]) -> None:
        figures[step] = found
        console.print(step, found)
        if json_file:
            write_json(json_file, figures)

    with tempfile.TemporaryDirectory() as name:
        place = out or Path(name)
        place.mkdir(parents=True, exist_ok=True)
        if not (place / "later.npy").exists():
            draw(place, items)
        for step, made in (("import", place / "data"), ("train", place / "run" / "bundle")):
            if not made.exists():
                tell(step, measured(step, place))
        tell("serve", serve(place))
        for step in ("update", "parts"):
            tell(step, measured(step, place))


if __name__ == "__main__":
    run_command(main, "bench.scale")
