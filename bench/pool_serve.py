"""`python -m bench.pool_serve --json F`: what a ranked pool costs over the beam alone, in a whole server.

Two searches in turn, one at a time: of a ranked pool, and of the beam alone, each with another history and query, and
without a prefix cache; then two recommendations in the same way. Titles are Zipf-distributed letter sequences (as in
`bench.lexical`), a query is one to four neighbouring words of a title, every item has 20 random transitions and 20
random co-occurrences, and identifiers are those of `bench.pool_engine`: two random codes of 256, and a number behind
them. The weights are those that a fit starts from. On a shared machine only the ratios count.
"""

from __future__ import annotations

import json
import os
import statistics
import tempfile
import time
from dataclasses import replace
from pathlib import Path
from typing import Annotated, Any

import numpy as np
import torch
import typer
from rich.console import Console

from bench.lexical import draw_items, draw_query
from bench.pool_engine import colliding_identifiers
from bench.untrained import publish_untrained
from index.catalogue import Catalogue, Item
from index.pool.fusion import ITEM_SIGNALS, NOTHING_SIGNALS, Fusion, TaskFusion
from index.pool.links.co_occurrence import CoOccurrence
from index.pool.links.transitions import Transitions
from index.pool.pool_index import PoolIndex
from index.sequence.events import Task
from training.cli.common.command import run_command
from training.cli.common.numbers import whole_numbers
from training.cli.common.paths import JsonFile
from training.cli.common.quiet import quiet_libraries
from training.fusion.logit import PRIOR
from training.outputs import write_json
from training.run.server_process import ServerProcess
from training.settings import MOST, MOST_BEAMS, MOST_THREADS

SEARCHES = 6  # one event of so many is a search, which makes prompts of about 300 tokens
VOCABULARY = 300_000  # distinct words of the titles
FOLLOWERS = 20  # links of an item, of each kind
WARM_UP = 3  # requests of each kind that are not counted


def main(
    json_file: JsonFile = None,
    backbone: Annotated[str, typer.Option(help="as in 'gems train'")] = "smollm2-135m",
    layers: Annotated[
        int | None, typer.Option(min=1, max=MOST_THREADS, help="keep the first N layers")
    ] = None,
    items: Annotated[str, typer.Option(help="sizes of the catalogue")] = "10000,1000000",
    history: Annotated[int, typer.Option(min=0, max=MOST, help="events of a request")] = 50,
    width: Annotated[int, typer.Option(min=1, max=MOST_BEAMS, help="beam width W")] = 50,
    repeats: Annotated[int, typer.Option(min=1, max=MOST, help="timed requests of each kind")] = 40,
    threads: Annotated[int, typer.Option(min=1, max=MOST_THREADS, help="CPU threads of the engine")] = 2,
) -> None:
    """Measure the time of a search with a pool and without, for every size of the catalogue."""
    quiet_libraries()
    os.environ |= {"GEMS_THREADS": str(threads), "GEMS_CACHE_MIB": "0", "GEMS_DEFAULT_BEAM_WIDTH": str(width)}
    figures: dict[str, Any] = {
        "backbone": backbone, "layers": layers, "beam_width": width, "threads": threads,
        "instructions": torch.backends.cpu.get_cpu_capability(), "cases": [],
    }  # fmt: skip
    for size in whole_numbers(items, 1000):
        with tempfile.TemporaryDirectory() as folder:
            catalogue = _publish(Path(folder) / "bundle", size, backbone, layers)
            with ServerProcess(Path(folder) / "bundle", patience=600) as server:
                figures["cases"] += [_measure(server, catalogue, task, history, repeats) for task in Task]
    Console().print_json(json.dumps(figures))
    if json_file is not None:
        write_json(json_file, figures)


def _publish(path: Path, size: int, backbone: str, layers: int | None) -> Catalogue:
    """Publish an untrained bundle with a pool, and return its catalogue."""
    catalogue = Catalogue(draw_items(np.random.default_rng(0), size, VOCABULARY))
    rng = np.random.default_rng(1)
    counts = rng.zipf(1.5, size).clip(max=10**6)
    arrays = [
        (
            np.arange(size + 1) * FOLLOWERS,
            np.sort(rng.integers(0, size, (size, FOLLOWERS), np.int32), axis=1).ravel(),
            rng.random(size * FOLLOWERS, np.float32),
        )
        for _ in range(2)
    ]
    pool = PoolIndex.build(
        catalogue, [], counts, transitions=Transitions(*arrays[0]), co_occurrence=CoOccurrence(*arrays[1])
    )
    weights = {
        task: TaskFusion({name: PRIOR[name][0] for name in (*ITEM_SIGNALS[task], *NOTHING_SIGNALS[task])})
        for task in Task
    }
    publish_untrained(
        path, items=size, backbone=backbone, layers=layers, normalisation="level",
        identifiers=colliding_identifiers(size), catalogue=catalogue, pool=replace(pool, fusion=Fusion(weights)),
    )  # fmt: skip
    return catalogue


def _measure(
    server: ServerProcess, catalogue: Catalogue, task: Task, history: int, repeats: int
) -> dict[str, Any]:
    path = {Task.SEARCH: "/search", Task.RECOMMENDATION: "/recommend"}[task]
    rng = np.random.default_rng(2)
    kinds = ("pool", "beam")
    ms: dict[str, list[float]] = {kind: [] for kind in kinds}
    stages: dict[str, list[float]] = {kind: [] for kind in kinds}
    for turn in range(WARM_UP + repeats):
        for kind in kinds if turn % 2 else reversed(kinds):
            body = _request(rng, catalogue, task, history) | {"ranking": kind}
            begin = time.perf_counter()
            answer = server.post(path, body)
            if turn >= WARM_UP:
                ms[kind].append(1000 * (time.perf_counter() - begin))
                stages[kind].append(answer["timings_ms"].get("pool", 0.0))
    median = {kind: statistics.median(values) for kind, values in ms.items()}
    return {
        "items": len(catalogue),
        "task": task.value,
        "ms": median,
        "ratio": median["pool"] / median["beam"],
        "words_and_fusion_ms": statistics.median(stages["pool"]),
    }


def _request(rng: np.random.Generator, catalogue: Catalogue, task: Task, history: int) -> dict[str, Any]:
    drawn = [catalogue[int(row)] for row in rng.integers(0, len(catalogue), history + 1)]
    query = {"query": draw_query(rng, drawn[0])} if task is Task.SEARCH else {}
    events = [_event(rng, item, k % SEARCHES == 0) for k, item in enumerate(drawn[1:])]
    return query | {"limit": 10, "history": events}


def _event(rng: np.random.Generator, item: Item, search: bool) -> dict[str, str]:
    event = {"item_id": item.item_id}
    return event | ({"behaviour": "search", "query": draw_query(rng, item)} if search else {})


if __name__ == "__main__":
    run_command(main, "bench.pool_serve")
