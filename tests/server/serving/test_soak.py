"""An hour of mixed load: memory and file descriptors stay constant, and the same test finds a server that leaks."""

from __future__ import annotations

import asyncio
import os
import threading
import time
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import psutil
import pytest
from support import leaking_server
from support.bundles import make_bundle
from support.servers import Server

from bench.load import closed_loop, request

MINUTES = float(os.environ.get("SOAK_MINUTES", "60"))
MESSAGES = [
    *(
        request("POST", "/v1/recommend", {"history": [{"item_id": f"item-{k}"}], "explain": k == 7})
        for k in range(60)
    ),
    *(
        request("POST", "/v1/search", {"query": f"river {k}", "filter": {"year": 1950 + k}})
        for k in range(60)
    ),
    request("POST", "/v1/search", {"query": "golden river", "ranking": "beam"}),
    request("POST", "/v1/search", {"query": "gloden", "min_relevance": 0.01}),
    request("POST", "/v1/batch", {"requests": [{"task": "recommendation"}] * 5}),
    request("POST", "/v1/recommend", {"nothing": 1}),
    request("POST", "/v1/recommend", {"timeout_ms": 1}),
    request("GET", "/metrics"),
    request("GET", "/nowhere"),
]
ALLOWED_MB = 16.0  # growth that is allowed, because allocators keep freed memory for a while
ALLOWED_DESCRIPTORS = 8.0


def growth(samples: Sequence[float]) -> float:
    """Return the growth of the median from the second quarter of the time to the last; the start is a warm-up."""
    quarters = np.array_split(np.asarray(samples, float), 4)
    return float(np.median(quarters[3]) - np.median(quarters[1]))


def soak(server: Server, minutes: float) -> tuple[list[float], list[float]]:
    """Return memory in MB and file descriptors of the server and its engine, sample by sample."""
    loading = threading.Thread(
        target=lambda: asyncio.run(closed_loop(server.port, MESSAGES, 8, 60 * minutes)), daemon=True
    )
    loading.start()
    processes = [psutil.Process(server.process.pid), psutil.Process(server.engine_pid)]
    megabytes, descriptors = [], []
    while loading.is_alive():
        megabytes.append(sum(process.memory_info().rss for process in processes) / 1e6)
        descriptors.append(float(sum(process.num_fds() for process in processes)))
        time.sleep(max(0.25, minutes / 10))
    return megabytes, descriptors


def test_growth_is_told_from_noise() -> None:
    rng = np.random.default_rng(0)
    noise = 500 + rng.normal(0, 5, 400) + 50 * (1 - np.exp(-np.arange(400) / 20))
    assert abs(growth(noise.tolist())) < ALLOWED_MB / 4
    assert growth((noise + np.linspace(0, 40, 400)).tolist()) > ALLOWED_MB


@pytest.mark.slow
def test_an_hour_leaves_no_trace(tmp_path: Path) -> None:
    with Server(make_bundle(tmp_path / "bundle", pool=True), GEMS_LOG_LEVEL="info") as server:
        megabytes, descriptors = soak(server, MINUTES)
    assert growth(megabytes) < ALLOWED_MB
    assert growth(descriptors) < ALLOWED_DESCRIPTORS


@pytest.mark.slow
def test_a_leak_is_caught(tiny_bundle: Path) -> None:
    with Server(tiny_bundle, program=Path(leaking_server.__file__)) as server:
        megabytes, _ = soak(server, min(2.0, MINUTES))
    assert growth(megabytes) > ALLOWED_MB
