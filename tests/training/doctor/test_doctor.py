"""`gems doctor`: all is well here, and what is broken is found and named."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import torch
from typer.testing import CliRunner

import training.doctor.checks
import training.doctor.doctor
from gems.weights.part import Part
from server.engine.torch_backend.head import Head
from training.cli.app import app
from training.doctor.advice import advice_of
from training.doctor.checks import device_checks, steps
from training.doctor.machine import machine_facts, speed

CPU = torch.device("cpu")
SPEEDS = {"cpu": {"float32": 1e9, "bfloat16": 1e8}}


def test_this_machine_is_well_and_the_findings_are_json(tmp_path: Path) -> None:
    target = tmp_path / "doctor.json"
    said = CliRunner().invoke(app, ["doctor", "--json", str(target)])
    found = json.loads(target.read_text())
    assert said.exit_code == int(found["broken"]) == 0, said.output
    assert {check["device"] for check in found["checks"]} >= {"cpu"}
    assert all(check["error"] == "" and check["seconds"] > 0 for check in found["checks"])
    assert found["facts"]["packages"]["torch"]
    assert found["speeds"]["cpu"]["float32"] > 0
    assert found["facts"]["memory"] > 0


def broken_update(*_: Any) -> None:
    """Leave the weights as they are."""


def test_a_training_or_an_engine_that_computes_wrongly_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    exact = steps(CPU, torch.float64)
    monkeypatch.setattr(
        training.doctor.checks, "steps", lambda *known: exact if known[1] == torch.float64 else wrong
    )
    wrong = exact * torch.linspace(1, 1.5, len(exact), dtype=torch.float64)
    found = {check["name"]: check["error"] for check in device_checks(CPU)}
    assert (
        "largest relative difference from float64 on the CPU is 0.5"
        in found["training step and refresh, float32"]
    )
    assert found["engine"] == ""


def test_an_update_that_does_nothing_shows(monkeypatch: pytest.MonkeyPatch) -> None:
    exact = steps(CPU, torch.float64)
    monkeypatch.setattr(Part, "update", broken_update)
    assert not torch.allclose(steps(CPU, torch.float64), exact, rtol=1e-3)


def test_a_check_that_fails_leaves_the_others_and_the_exit_code_is_one(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    def broken(*_: Any, **__: Any) -> None:
        raise RuntimeError("no kernel image is available for execution on the device")

    monkeypatch.setattr(Head, "__init__", broken)
    said = CliRunner().invoke(app, ["doctor", "--json", str(tmp_path / "d.json")])
    found = json.loads((tmp_path / "d.json").read_text())
    assert said.exit_code == 1
    failed = {check["name"] for check in found["checks"] if check["error"]}
    assert failed == {"engine", "engine, packed weights"}
    assert any("engine on cpu is broken: RuntimeError: no kernel image" in line for line in found["advice"])


def test_advice_follows_the_facts() -> None:
    facts = machine_facts()
    gpu = {"name": "V100", "memory": 16 * 10**9, "capability": "7.0", "bfloat16": False}
    assert any(
        "built for CUDA 12" in line
        for line in advice_of(facts | {"devices": [], "cuda_build": "12.8"}, [], SPEEDS)
    )
    several = advice_of(facts | {"devices": [gpu, gpu], "nccl": False}, [], SPEEDS)
    assert any("V100 has no bfloat16" in line for line in several)
    assert any("need a torch with NCCL" in line for line in several)
    assert not any("No GPU" in line for line in several)
    assert any(
        "OMP_NUM_THREADS" in line for line in advice_of(facts | {"threads": 99, "cores": 2}, [], SPEEDS)
    )
    assert any(
        "leave --backbone.precision" in line for line in advice_of(facts | {"devices": []}, [], SPEEDS)
    )


def test_a_product_has_a_speed() -> None:
    assert speed(CPU, torch.float32) > 1e6
