"""FSDP2 over two and four processes gives the results of one process, each with a part of the rows."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from support.sharded_processes import OF_FOUR, SETTINGS, started, train


@pytest.fixture(scope="module")
def found(tmp_path_factory: pytest.TempPathFactory) -> dict[int, list[dict[str, Any]]]:
    """Return the results of each process, by number of processes."""
    return {world: started(world, tmp_path_factory.mktemp(f"of{world}")) for world in (2, 4)}


@pytest.mark.parametrize("name", list(SETTINGS))
def test_processes_with_a_part_of_the_rows_are_one(name: str, found: dict[int, list[dict[str, Any]]]) -> None:
    alone = train(0, 1, SETTINGS[name])
    start = train(0, 1, SETTINGS[name], steps=0)
    assert any(alone["refreshed"])
    assert not all(alone["refreshed"])
    for world in (2, 4) if name in OF_FOUR else (2,):
        first = found[world][0][name]
        for each in found[world][1:]:  # all have the very same
            for kind in ("weights", "bases"):
                for weight, value in first[kind].items():
                    assert torch.equal(value, each[name][kind][weight]), (kind, weight)
            assert first["figures"] == each[name]["figures"]
        assert first["counts"] == alone["counts"]
        assert [sorted(each) for each in first["refreshed"]] == [sorted(each) for each in alone["refreshed"]]
        if name == "bf16":  # sums in bf16 depend on their order, and Adam divides the difference by little
            for weight, value in first["exact"].items():
                assert torch.equal(value.bfloat16(), first["weights"][weight])
                apart = float((value - alone["exact"][weight]).norm())
                assert apart < 0.4 * float((alone["exact"][weight] - start["exact"][weight]).norm()), weight
            continue
        for weight, value in first["weights"].items():
            assert torch.allclose(value, alone["weights"][weight], rtol=0, atol=1e-10), weight
        for step, figures in enumerate(first["figures"]):
            assert figures == pytest.approx(alone["figures"][step], rel=1e-10, abs=1e-10), step
            for weight, figures in first["refreshed"][step].items():
                assert figures == pytest.approx(alone["refreshed"][step][weight], rel=1e-8, abs=1e-8), weight


def test_a_process_holds_its_rows_only(found: dict[int, list[dict[str, Any]]]) -> None:
    alone = train(0, 1, SETTINGS["joint"], steps=0)["rows"]
    for world in (2, 4):
        for weight, rows in alone.items():
            held = [each["joint"]["rows"][weight] for each in found[world]]
            assert sum(held) == rows
            assert max(held) == -(-rows // world)


def test_between_refreshes_only_projected_gradients_are_sent(found: dict[int, list[dict[str, Any]]]) -> None:
    rows = train(0, 1, SETTINGS["joint"], steps=0)["rows"]
    for world in (2, 4):
        one = found[world][0]["joint"]
        weights = {name: p for name, p in one["weights"].items() if name in rows}
        plain = sum(p.numel() for name, p in one["weights"].items() if name not in rows)
        # fp64, whose rows are filled up to the same number for each process; a ring sends all parts but one
        projected = sum(8 * (world - 1) * -(-rows[name] // world) * one["columns"][name] for name in rows)
        full = sum(8 * (world - 1) * -(-rows[name] // world) * p.shape[1] for name, p in weights.items())
        calm = [sent for sent, due in zip(one["sent"], one["refreshed"], strict=True) if not due]
        busy = [sent for sent, due in zip(one["sent"], one["refreshed"], strict=True) if due]
        assert calm
        assert all(projected < sent < projected + 2 * 8 * plain + 1000 for sent in calm)
        assert min(busy) > max(calm)
        assert projected < 0.6 * full
