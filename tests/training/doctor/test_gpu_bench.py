"""`python -m bench.gpu` in its tiny form on the CPU, so that it runs where there is a GPU."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import typer

import bench.gpu
from bench.gpu import METHODS, main


def run(target: Path) -> None:
    main(json_file=target, device="cpu", tiny=True, backbone=None, steps=1, checkpointing=True)


def test_every_part_has_its_figures_and_those_of_a_gpu_are_null(tmp_path: Path) -> None:
    run(tmp_path / "gpu.json")
    found = json.loads((tmp_path / "gpu.json").read_text())
    assert found["failed"] == {}
    assert found["device"] == "CPU: no figure of a GPU"
    assert found["training"].keys() == set(METHODS)
    for figures in found["training"].values():
        assert figures["measured_peak_bytes"] is None
        assert figures["precision"] == "float32"
        assert all(
            value > 0 for name, value in figures.items() if name.endswith("seconds") or "planned" in name
        )
        assert 0 < figures["share_of_bound"] < 1
    assert found["training"]["full"]["step_to_full"] == 1
    assert found["engine"]["captured_seconds"] is found["engine"]["captured_same_items"] is None
    assert found["engine"]["seconds"] > 0


def test_a_part_that_fails_is_named_and_the_others_are_saved(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    plain = bench.gpu.make_method

    def without_memory(model: Any, config: Any, first: int) -> Any:
        if config.method == "full":
            raise RuntimeError("CUDA out of memory")
        return plain(model, config, first)

    monkeypatch.setattr(bench.gpu, "make_method", without_memory)
    monkeypatch.setattr(bench.gpu, "device_checks", lambda _: [])
    with pytest.raises(typer.Exit) as ended:
        run(tmp_path / "gpu.json")
    found = json.loads((tmp_path / "gpu.json").read_text())
    assert ended.value.exit_code == 1
    assert found["failed"] == {"training, full": "RuntimeError: CUDA out of memory"}
    assert found["training"]["full"] is None
    assert found["training"]["gems"]["step_seconds"] > 0
    assert found["engine"]["seconds"] > 0
