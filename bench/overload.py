"""`python -m bench.overload BUNDLE --json F`: a server at 80% and at five times its capacity, in one run.

Recommendations for histories of the same items come at random moments (an open loop: clients do not wait for answers),
beside ten calls a second of `/health/live` and `/metrics`. The prefix cache is off, because all requests are alike.
Clients and server share the processor. Reported are the peak (a closed loop), the goodput under five times as much, and
times, also as ratios to those at 80% of the peak.
"""

from __future__ import annotations

import asyncio
import json
import os
from collections import Counter
from typing import Annotated, Any
from urllib.parse import urlsplit

import torch
import typer
from rich.console import Console

from bench.load import Answered, closed_loop, open_loop, quantile, rate_of, request
from index.bundle.bundle import Bundle
from server.settings import Settings
from training.cli.common.command import run_command
from training.cli.common.paths import BundlePath, JsonFile
from training.errors import UserError
from training.outputs import write_json
from training.run.server_process import ServerProcess
from training.settings import MOST

HEALTH = [request("GET", "/health/live"), request("GET", "/metrics")]
EVENTS = 40  # of a history
TIMES = 5  # the capacity


def main(
    bundle: BundlePath,
    json_file: JsonFile = None,
    seconds: Annotated[int, typer.Option(min=5, max=MOST, help="seconds of each load")] = 20,
) -> None:
    """Load a server."""
    os.environ["GEMS_CACHE_MIB"] = "0"
    ids = Bundle.open(bundle).index.catalogue.item_ids[:EVENTS]
    ask = request("POST", "/v1/recommend", {"history": [{"item_id": item_id} for item_id in ids]})
    with ServerProcess(bundle) as server:
        port = urlsplit(server.url).port or 80
        connections = 2 * Settings().max_batch_size
        peak = rate_of(asyncio.run(closed_loop(port, [ask], connections, seconds)), 2, seconds - 3)
        if not peak:
            raise UserError(f"{bundle} answered nothing in {seconds} s; give more --seconds")
        usual, _ = asyncio.run(beside_health(port, ask, 0.8 * peak, seconds))
        found, health = asyncio.run(beside_health(port, ask, TIMES * peak, seconds))
    statuses = Counter(each.status for each in found)
    admitted = [each for each in found if each.status == 200]
    at_80 = quantile([each for each in usual if each.status == 200], 0.99)
    figures: dict[str, Any] = {
        "instructions": torch.backends.cpu.get_cpu_capability(),
        "max_batch_size": Settings().max_batch_size,
        "peak": round(peak, 2),
        "goodput, of the peak": round(rate_of(found, 2, seconds - 4) / peak, 3),
        "statuses": {str(status): count for status, count in sorted(statuses.items())},
        "p99 at 80%": round(at_80, 4),
        "p99 admitted": round(quantile(admitted, 0.99), 4),
        "p99 admitted, by that at 80%": round(quantile(admitted, 0.99) / at_80, 2),
        "p99 refused": round(quantile([each for each in found if each.status == 429], 0.99), 4),
        "slowest health": round(quantile(health, 1.0), 4),
    }
    Console().print_json(json.dumps(figures))
    if json_file is not None:
        write_json(json_file, figures)


async def beside_health(
    port: int, ask: bytes, rate: float, seconds: float
) -> tuple[list[Answered], list[Answered]]:
    """Send a request at a given rate, and calls of `HEALTH`. Return the answers to both."""
    asked, health = await asyncio.gather(
        open_loop(port, [ask], rate, seconds), open_loop(port, HEALTH, 10, seconds, seed=1)
    )
    return asked, health


if __name__ == "__main__":
    run_command(main, "bench.overload")
