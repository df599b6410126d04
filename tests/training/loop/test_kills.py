"""Crash safety: a training that is killed several times ends with the same weights, bit by bit."""

from __future__ import annotations

import hashlib
import os
import random
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
from rich.console import Console
from support.walks import make_data, settings

from training.pipeline import train


def sha(run: Path) -> str:
    return hashlib.sha256((run / "bundle" / "model.safetensors").read_bytes()).hexdigest()


def weights_are_being_written(run: Path) -> bool:
    return any((run / "checkpoints").glob(".step-*.draft"))


@pytest.mark.slow
def test_twenty_kills_leave_no_trace(tmp_path: Path) -> None:
    """Twenty runs are killed at a random moment of training and resumed, some of them several times.

    The first ones are killed while they write a checkpoint.
    """
    data = make_data(tmp_path / "walks")
    config = settings({"run.checkpoint_every": 1e-3, "optimiser.epochs": 8, "gems.stagger": 3})
    config.save(tmp_path / "config.yaml")
    train(data, tmp_path / "whole", config, console=Console(quiet=True))
    expected = sha(tmp_path / "whole")
    chance = random.Random(0)
    inside_a_write = kills = 0
    for turn in range(20):
        run = tmp_path / f"run-{turn}"
        command = [
            sys.executable, "-m", "training.cli.main", "train", "--data", str(data), "--out", str(run),
            "--config", str(tmp_path / "config.yaml"), "--resume",
        ]  # fmt: skip
        wants_write = turn < 5
        for _ in range(1 + turn % 2):
            process = subprocess.Popen(command, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
            while process.poll() is None and not (run / "metrics.jsonl").exists():
                time.sleep(0.01)
            patience = time.monotonic() + chance.uniform(0.1, 2.0)
            while process.poll() is None:
                if wants_write and weights_are_being_written(run):
                    break
                if not wants_write and time.monotonic() > patience:
                    break
            if process.poll() is None:
                process.send_signal(signal.SIGKILL)
                kills += 1
                inside_a_write += weights_are_being_written(run)
            process.wait()
        subprocess.run(command, check=True, capture_output=True)
        assert sha(run) == expected, turn
        assert not [name for name in os.listdir(run / "checkpoints") if name.startswith(".")]
    assert kills >= 20
    assert inside_a_write >= 1
