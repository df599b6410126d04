"""Methods other than GEMS on a sharded model: two processes make the steps of one, and hold half of the states."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from support import sharded_methods
from support.sharded_processes import started


@pytest.fixture(scope="module")
def found(tmp_path_factory: pytest.TempPathFactory) -> dict[int, list[dict[str, Any]]]:
    folder = tmp_path_factory.mktemp("methods")
    file = Path(sharded_methods.__file__)
    return {world: started(world, folder / str(world), file=file) for world in (1, 2)}


@pytest.mark.parametrize("variant", sharded_methods.VARIANTS)
def test_two_processes_make_the_steps_of_one(variant: str, found: dict[int, Any]) -> None:
    alone, first, second = (each[variant] for each in (*found[1], *found[2]))
    assert alone["spread"] == 0 < first["spread"] == second["spread"]
    for one, two in zip(alone["figures"], first["figures"], strict=True):
        assert two == pytest.approx(one, rel=1e-9)
    for name, weight in alone["weights"].items():
        # the solvers of two methods, and ranks of gradients that vanish, know no more digits
        assert torch.allclose(first["weights"][name], weight, rtol=1e-7, atol=1e-8), name
    assert any(
        not torch.equal(weight, alone["weights"][name])
        for name, weight in sharded_methods.make_model(sharded_methods.VOCABULARY.size).state_dict().items()
    )


def test_states_of_sharded_weights_are_divided(found: dict[int, Any]) -> None:
    alone, first = found[1][0]["full"]["held"], found[2][0]["full"]["held"]
    assert first["state_bytes"] < 0.75 * alone["state_bytes"]  # token rows are on every process
    assert first["gradient_bytes"] < 0.75 * alone["gradient_bytes"]
