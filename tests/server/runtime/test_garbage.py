"""The garbage collector has almost no work while requests are answered, and a swap does not need it."""

from __future__ import annotations

import asyncio
import gc
import weakref
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from support import counting_server
from support.bundles import make_bundle
from support.servers import Server, wait_until

from index.bundle.bundle import Bundle
from server.engine.contract import HostedEngine, RankRequest
from server.engine.options import EngineOptions
from server.engine.process.engine_process import EngineProcess
from server.runtime import garbage
from server.serving.deployments import Deployments
from server.settings import Settings
from server.telemetry.metrics import Metrics


def test_a_ready_server_has_settled(tiny_bundle: Path) -> None:
    with Server(tiny_bundle, program=Path(counting_server.__file__)) as server:
        wait_until(lambda: any("frozen" in line for line in server.lines))
        (line,) = [line for line in server.lines if "frozen" in line]
    assert int(str(line["tracked"])) < int(str(line["frozen"])) / 20


def test_only_who_has_settled_settles_again() -> None:
    garbage.settle_again()
    assert gc.get_freeze_count() == 0


@pytest.fixture
def collector_off() -> Iterator[None]:
    gc.collect()
    gc.disable()
    yield
    gc.enable()


def test_what_is_swapped_out_is_freed_without_the_collector(tmp_path: Path, collector_off: None) -> None:
    """A catalogue that only the collector could free would never be freed."""
    path = make_bundle(tmp_path / "bundle")

    def reopen() -> tuple[Bundle, HostedEngine]:
        bundle = Bundle.open(path)
        return bundle, EngineProcess(bundle, options=EngineOptions(threads=1))

    async def scenario() -> None:
        served = Deployments(*reopen(), Metrics(), Settings(), reopen)
        await served.start()
        try:
            for refresh in (served.refresh_index, served.refresh_bundle, served.refresh_index):
                prompt = served.current.bundle.encoder.prompt([])
                await served.current.scheduler.rank(RankRequest(prompt.ids, 5, 10), 20)
                old = [
                    weakref.ref(served.current.bundle.index.catalogue),
                    weakref.ref(served.current.contents.titles),
                ]
                await refresh(lambda before, now: None)
                await until_gone(old)
        finally:
            await served.stop()

    asyncio.run(scenario())


async def until_gone(references: list[weakref.ref[Any]]) -> None:
    for _ in range(500):
        if not any(reference() for reference in references):
            return
        await asyncio.sleep(0.01)
    keepers = [gc.get_referrers(reference()) for reference in references if reference()]
    raise AssertionError(f"still there: {[[type(keeper) for keeper in each] for each in keepers]}")
