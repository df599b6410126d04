"""`python -m bench.admission --json F`: response times of requests at random moments, for several admission policies.

The engine ranks in this process. The clock is the CPU time of its thread, and jumps to the next arrival when no request
is in flight, so that other work on the machine disturbs little. The load is a share of the engine's throughput for
single requests. The policy `batches` ranks all waiting requests, up to a batch, and answers them together. The other
policies answer each request when it is done, and let new requests join a pass of at most N tokens
(`EngineOptions.join_rows`). Prompts have random tokens and one of the given lengths.
"""

from __future__ import annotations

import json
import random
import tempfile
import time
from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from typing import Annotated, Any

import numpy as np
import torch
import typer
from rich.console import Console

from bench.untrained import publish_untrained
from index.bundle.bundle import Bundle
from server.engine.contract import Outcome, RankRequest
from server.engine.options import EngineOptions
from server.engine.torch_backend.engine import TorchEngine
from training.cli.common.command import run_command
from training.cli.common.numbers import finite, whole_numbers
from training.cli.common.paths import JsonFile
from training.cli.common.quiet import quiet_libraries
from training.outputs import write_json
from training.settings import MOST

ITEMS = 10_000
BATCH = 8
WIDTH = 50
UNBOUNDED = 1 << 30


class Queue:
    """Requests that arrive at given seconds on the engine's clock.

    taken: seconds from arrival to answer of each answered request.
    """

    def __init__(self, requests: list[RankRequest], moments: list[float]) -> None:
        self._coming = list(zip(moments, requests, strict=True))[::-1]
        self._arrived: dict[int, float] = {}  # requests in flight: number → arrival
        self._begin = time.thread_time()
        self._skipped = 0.0
        self._count = 0
        self.taken: list[float] = []

    def _now(self) -> float:
        return time.thread_time() - self._begin + self._skipped

    def arrivals(self) -> dict[int, RankRequest]:
        """Return the requests that have arrived by now, up to the size of a batch in flight."""
        if self._coming and not self._arrived:
            self._skipped += max(0.0, self._coming[-1][0] - self._now())
        found: dict[int, RankRequest] = {}
        while self._coming and self._coming[-1][0] <= self._now() and len(self._arrived) < BATCH:
            self._count += 1
            self._arrived[self._count], found[self._count] = self._coming.pop()
        return found

    def answered(self, outcomes: Mapping[int, Outcome]) -> None:
        """Record the time of each answer. Raises the error of a request that failed."""
        for number, outcome in outcomes.items():
            if isinstance(outcome, Exception):
                raise outcome
            self.taken.append(self._now() - self._arrived.pop(number))


def in_batches(engine: TorchEngine, queue: Queue) -> None:
    """Rank the waiting requests batch by batch."""
    while batch := queue.arrivals():
        rankings = engine.rank(list(batch.values()))
        queue.answered(dict(zip(batch, rankings, strict=True)))


def measure(
    engine: TorchEngine, requests: list[RankRequest], load: float, seed: int
) -> dict[str, list[float]]:
    """Return policy → seconds of each request.

    load: arrivals as a share of the throughput for single requests.
    """
    begin = time.thread_time()
    for request in requests[:20]:
        engine.rank([request])
    rate = load * 20 / (time.thread_time() - begin)
    rng = random.Random(seed)
    moments = np.cumsum([rng.expovariate(rate) for _ in requests]).tolist()
    taken = {}
    for join_rows in (None, 0, 256, UNBOUNDED):
        queue = Queue(requests, moments)
        if join_rows is None:
            in_batches(engine, queue)
            name = "batches"
        else:
            engine.options = replace(engine.options, join_rows=join_rows)
            engine.serve({}, queue.arrivals, queue.answered)
            name = "unbounded" if join_rows == UNBOUNDED else str(join_rows)
        taken[name] = queue.taken
    return taken


def main(
    lengths: Annotated[str, typer.Option(help="prompt lengths, each equally often")] = "30,100,300",
    load: Annotated[float, typer.Option(min=0.1, max=0.95, callback=finite)] = 0.7,
    count: Annotated[int, typer.Option(min=1, max=MOST, help="requests of a round")] = 150,
    rounds: Annotated[int, typer.Option(min=1, max=MOST)] = 3,
    layers: Annotated[
        int | None, typer.Option(min=1, max=1000, help="of the backbone; all of them otherwise")
    ] = None,
    json_file: JsonFile = None,
) -> None:
    choice = whole_numbers(lengths)
    quiet_libraries()
    torch.set_num_threads(1)
    with tempfile.TemporaryDirectory() as folder:
        path = publish_untrained(Path(folder) / "bundle", items=ITEMS, layers=layers, normalisation="level")
        engine = TorchEngine.open(Bundle.open(path), EngineOptions(precision="bfloat16"))
    taken: dict[str, list[float]] = {}
    for seed in range(rounds):
        rng = np.random.default_rng(seed)
        requests = [
            RankRequest(rng.integers(0, 1000, rng.choice(choice)).tolist(), 10, WIDTH) for _ in range(count)
        ]
        for name, seconds in measure(engine, requests, load, seed).items():
            taken.setdefault(name, []).extend(seconds)
    report: dict[str, Any] = {"lengths": choice, "load": load, "requests": count * rounds, "milliseconds": {}}
    for name, seconds in taken.items():
        p50, p90, p99 = (1000 * float(each) for each in np.quantile(seconds, (0.5, 0.9, 0.99)))
        report["milliseconds"][name] = {
            "mean": 1000 * float(np.mean(seconds)),
            "p50": p50,
            "p90": p90,
            "p99": p99,
        }
    Console().print_json(json.dumps(report))
    if json_file is not None:
        write_json(json_file, report)


if __name__ == "__main__":
    run_command(main, "bench.admission")
