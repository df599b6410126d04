"""`python -m bench.serve --json F`: the overhead of the HTTP server over the engine alone, at saturation.

The engine alone ranks one full batch after the other, in this process. Then a server gets the same requests, from twice
as many clients as a batch has places; each client sends the next request when it has its answer. Engine and server run
in turn several times, and the medians are compared, because on a shared machine only ratios count. The server needs a
core in addition to the engine's threads.
"""

from __future__ import annotations

import asyncio
import os
import statistics
import tempfile
import time
from itertools import cycle, islice
from pathlib import Path
from typing import Annotated, Any

import numpy as np
import torch
import typer
from rich.console import Console

from bench.load import closed_loop, quantile, rate_of_batches, request
from bench.untrained import publish_untrained
from index.bundle.bundle import Bundle
from index.sequence.events import Event
from server.engine.contract import RankRequest
from server.engine.torch_backend.engine import TorchEngine
from server.runtime import garbage
from server.settings import Settings
from training.cli.common.command import run_command
from training.cli.common.numbers import finite
from training.cli.common.paths import JsonFile, input_bundle
from training.cli.common.quiet import quiet_libraries
from training.outputs import write_json
from training.run.server_process import ServerProcess
from training.settings import MOST, MOST_THREADS

ITEMS = 10_000
HISTORY = 20
LIMIT = 10


def histories(count: int, items: int) -> list[list[int]]:
    """Return random histories of N users: catalogue rows."""
    rng = np.random.default_rng(1)
    return [rng.integers(0, items, HISTORY).tolist() for _ in range(count)]


def engine_rate(engine: TorchEngine, requests: list[RankRequest], batch: int, seconds: float) -> float:
    """Return the throughput in full batches: requests per second."""
    source = cycle(requests)
    engine.rank(list(islice(source, batch)))
    begin = time.perf_counter()
    ranked = 0
    while time.perf_counter() - begin < seconds:
        ranked += len(engine.rank(list(islice(source, batch))))
    return ranked / (time.perf_counter() - begin)


def measure(bundle_path: Path, rounds: int, seconds: float, threads: int) -> dict[str, Any]:
    """Return the figures of one bundle."""
    os.environ["GEMS_THREADS"] = str(threads)  # read by the server
    torch.set_num_threads(threads)
    settings = Settings()
    bundle = Bundle.open(bundle_path)
    engine = TorchEngine.open(bundle, settings.engine_options())
    people = histories(512, len(bundle.index.catalogue))
    prompts = [bundle.encoder.prompt([Event(row) for row in rows]) for rows in people]
    requests = [
        RankRequest(prompt.ids, LIMIT, settings.default_beam_width, shared_tokens=prompt.history)
        for prompt in prompts
    ]
    bodies = [
        {
            "history": [{"item_id": bundle.index.catalogue[row].item_id} for row in rows],
            "limit": LIMIT,
            "exclude_history": False,  # as in the requests to the engine
        }
        for rows in people
    ]
    messages = [request("POST", "/v1/recommend", body) for body in bodies]
    batch = settings.max_batch_size
    garbage.settle()  # as in the server, for a fair comparison
    engine_rps, http_rps, answers = [], [], []
    with ServerProcess(bundle_path) as server:
        port = int(server.url.rpartition(":")[2])
        for _ in range(rounds):
            engine_rps.append(engine_rate(engine, requests, batch, seconds))
            found = asyncio.run(closed_loop(port, messages, 2 * batch, seconds + 1))
            refused = [each.status for each in found if each.status != 200]
            if refused:
                raise SystemExit(f"{len(refused)} requests were not answered, the first with {refused[0]}")
            http_rps.append(rate_of_batches(found, 0.5, batch))
            answers += found
    engine_median, http_median = statistics.median(engine_rps), statistics.median(http_rps)
    return {
        "engine_rps": engine_median,
        "http_rps": http_median,
        "overhead": engine_median / http_median - 1,
        "p50_ms": 1000 * quantile(answers, 0.5),
        "p99_ms": 1000 * quantile(answers, 0.99),
        "rounds": {"engine_rps": engine_rps, "http_rps": http_rps},
        "clients": 2 * batch,
        "batch": batch,
        "beam_width": settings.default_beam_width,
        "prompt_tokens": len(requests[0].prompt),
        "items": len(bundle.index.catalogue),
        "threads": threads,
    }


def main(
    json_file: JsonFile = None,
    bundle: Annotated[
        Path | None,
        typer.Option(help="a published bundle instead of one made for this", callback=input_bundle),
    ] = None,
    backbone: Annotated[str, typer.Option(help="as in 'gems train'")] = "smollm2-135m",
    layers: Annotated[int | None, typer.Option(min=1, max=1000, help="keep the first N layers")] = 4,
    rounds: Annotated[int, typer.Option(min=1, max=MOST, help="turns of the engine and of the server")] = 3,
    seconds: Annotated[float, typer.Option(min=1, max=MOST, callback=finite, help="of each turn")] = 15,
    threads: Annotated[int, typer.Option(min=1, max=MOST_THREADS, help="CPU threads of the engine")] = 1,
) -> None:
    """Measure requests a second of the engine and of the server around it."""
    quiet_libraries()
    with tempfile.TemporaryDirectory() as folder:
        path = bundle or Path(folder) / "bundle"
        if bundle is None:
            publish_untrained(path, items=ITEMS, backbone=backbone, layers=layers, normalisation="level")
        figures = measure(path, rounds, seconds, threads)
    figures |= {"bundle": str(bundle)} if bundle else {"backbone": backbone, "layers": layers}
    console = Console()
    for name in ("engine_rps", "http_rps", "overhead", "p50_ms", "p99_ms"):
        console.print(f"{name:12}{figures[name]:10.3f}", highlight=False)
    if json_file:
        write_json(json_file, figures)


if __name__ == "__main__":
    run_command(main, "bench.serve")
