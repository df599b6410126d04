"""Trainings of some minutes on either clock, while other programs take the processor: a wall clock that runs fast."""

from __future__ import annotations

import time
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch
from rich.console import Console
from support.walks import make_data

from training.baselines.run import run_baseline
from training.baselines.settings import NCFSettings
from training.config import TrainConfig
from training.fit import fit
from training.loop import clock
from training.loop.clock import minutes_of

MINUTES = 0.05
QUIET = Console(quiet=True)
BUSY = SimpleNamespace(perf_counter=lambda: 50 * time.perf_counter(), process_time=time.process_time)


@pytest.fixture(scope="module")
def data(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return make_data(tmp_path_factory.mktemp("data") / "walks")


def test_processor_time_is_that_of_a_thread() -> None:
    before = torch.get_num_threads()
    torch.set_num_threads(2)
    try:
        assert (minutes_of("wall", 120, 600), minutes_of("cpu", 120, 600)) == (2, 5)
    finally:
        torch.set_num_threads(before)


def test_a_baseline_on_a_busy_machine_loses_no_processor_time(
    data: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(clock, "time", BUSY)
    wanted = NCFSettings(
        hidden=8, epochs=10**6, patience=10**6, threads=1, minutes=MINUTES, clock="cpu", validation_cases=5
    )
    used = run_baseline(data, tmp_path / "run", wanted, console=QUIET)["training"]["cpu_seconds"]
    assert used >= 60 * MINUTES


def test_a_language_model_on_a_busy_machine_loses_no_processor_time(
    data: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(clock, "time", BUSY)
    length = {"optimiser.minutes": MINUTES, "optimiser.clock": "cpu", "optimiser.epochs": 10**6}
    rare = {"validation.every": 10**5, "validation.cases": 4, "validation.conflict_cases": 0}
    tiny = {"backbone.hidden": 16, "backbone.layers": 1, "backbone.heads": 2, "identifiers.scheme": "atomic"}
    config = TrainConfig.load(None, {"method": "full", "threads": 1, **length, **rare, **tiny})
    trained = fit(data, tmp_path / "run", config, console=QUIET)
    assert trained is not None
    assert trained.record["cpu_seconds"] >= 60 * MINUTES
