"""Two processes, each on half of a batch, give the results of one process; they send only projected gradients."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import torch
from support.two_processes import ABSENT, SETTINGS, STEPS, train

TESTS = Path(__file__).parents[1]


@pytest.fixture(scope="module")
def two(tmp_path_factory: pytest.TempPathFactory) -> list[dict[str, Any]]:
    """Return the results of each of two processes, by settings."""
    folder = tmp_path_factory.mktemp("two")
    environment = os.environ | {
        "PYTHONPATH": os.pathsep.join([str(TESTS), str(TESTS.parent)]),
        "OMP_NUM_THREADS": "1",
    }
    script = str(TESTS / "support" / "two_processes.py")
    processes = [
        subprocess.Popen(
            [sys.executable, script, str(rank), "2", str(folder)],
            env=environment,
            stderr=subprocess.PIPE,
            text=True,
        )
        for rank in range(2)
    ]
    try:
        for process in processes:
            _, errors = process.communicate(timeout=120)
            assert process.returncode == 0, errors
    finally:
        for process in processes:
            process.kill()
    return [torch.load(folder / f"rank{rank}.pt") for rank in range(2)]


@pytest.mark.parametrize("name", list(SETTINGS))
def test_two_processes_are_one(name: str, two: list[dict[str, Any]]) -> None:
    one, other = (found[name] for found in two)
    alone = train(0, 1, SETTINGS[name])
    assert all(size >= 1 for size in alone["knowledge"].values())
    assert any(alone["refreshed"])
    assert not all(alone["refreshed"])
    for kind in ("weights", "moments"):
        for weight, value in one[kind].items():
            assert torch.equal(value, other[kind][weight]), (kind, weight)
    assert one["gates"] == other["gates"]
    assert one["counts"] == other["counts"] == alone["counts"]
    assert one["refreshed"] == other["refreshed"] == alone["refreshed"]
    # search is missing altogether in one step, on one process only in the others
    first = one["counts"]["0.weight"]
    assert first["search"] == first["recommendation"] - 1 == first["shared"] - 1 == STEPS - 1
    assert sum(step == 6 for _, step in ABSENT) == 2
    for weight, value in one["weights"].items():
        assert torch.allclose(value, alone["weights"][weight], rtol=0, atol=1e-9), weight


def test_between_refreshes_only_projected_gradients_are_sent(two: list[dict[str, Any]]) -> None:
    for gate in ("prior", "hypergradient"):
        one, other = (found[gate] for found in two)
        assert one["sent"] == other["sent"]
        calm = 0
        for step, bytes_sent in enumerate(one["sent"]):
            due = one["refreshed"][step]
            tasks = 1 if {(0, step), (1, step)} <= ABSENT else 2
            expected = sum(
                tasks * one["full_bytes"][step][name] if name in due else size
                for name, size in one["projected_bytes"][step].items()
            )
            weights = len(one["full_bytes"][step])
            plain = one["plain_parameters"]
            # fp64: three of each task, one of each weight and of each plain parameter, and the objective
            stats = (3 * 2 + weights + plain + 1) * 8
            alignment = 2 * 8 if gate == "hypergradient" else 0  # one fp64 figure of each task
            assert bytes_sent == expected + one["plain_bytes"] + stats + alignment, step
            if not due:
                calm += 1
                full = sum(one["full_bytes"][step].values())
                assert bytes_sent < 0.75 * full + one["plain_bytes"]
        assert calm >= 4
