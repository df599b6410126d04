"""All that `gems doctor` finds, and how it is printed."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from rich.console import Console
from rich.table import Table

from training.doctor.advice import advice_of
from training.doctor.checks import device_checks
from training.doctor.machine import machine_facts, speed

GB = 10**9
TYPES = {"float32": torch.float32, "bfloat16": torch.bfloat16}


def examine(progress: Callable[[str], None] = lambda name: None) -> dict[str, Any]:
    """Return facts, speeds, checks and advice, JSON-ready.

    progress: called with the name of what is about to run.

        facts    see `machine_facts`
        speeds   device → float32, bfloat16 → operations a second of a product of matrices
        checks   name, device, error ('' if all is well) and seconds of each
        advice   sentences
        broken   whether a check failed
    """
    facts = machine_facts()
    devices = [torch.device("cpu"), *(torch.device("cuda", k) for k in range(len(facts["devices"])))]
    speeds: dict[str, dict[str, float]] = {}
    checks: list[dict[str, Any]] = []
    for device in devices:
        progress(f"speed of {device}")
        speeds[str(device)] = {name: speed(device, dtype) for name, dtype in TYPES.items()}
        checks += device_checks(device, lambda name, device=device: progress(f"{name} on {device}"))  # type: ignore[misc]
    advice = advice_of(facts, checks, speeds)
    broken = any(check["error"] for check in checks)
    return {"facts": facts, "speeds": speeds, "checks": checks, "advice": advice, "broken": broken}


def print_findings(found: dict[str, Any], console: Console) -> None:
    """Print the findings of `examine`."""
    facts = found["facts"]
    packages = ", ".join(f"{name} {version or '-'}" for name, version in facts["packages"].items())
    lines = {
        "machine": f"{facts['system']}, {facts['cores']} cores, {facts['threads']} threads, "
        f"{facts['memory'] / GB:.1f} GB",
        "instructions": f"{facts['instructions']}, bfloat16 {_word(facts['bfloat16_instructions'])}",
        "torch": f"CUDA {facts['cuda_build'] or 'not built in'}; gloo {_word(facts['gloo'])}, NCCL "
        f"{_word(facts['nccl'])}",
        "torch.compile": f"C++ compiler {facts['compiler'] or 'no'}, triton {_word(facts['triton'])}",
        "GPUs": "; ".join(
            f"{g['name']}, {g['memory'] / GB:.0f} GB, {g['capability']}" for g in facts["devices"]
        )
        or "none",
        "Chromium": facts["chromium"] or "no",
        "packages": f"Python {facts['python']}, {packages}",
    }
    for device, speeds in found["speeds"].items():
        lines[f"products, {device}"] = ", ".join(f"{n} {v / 1e12:.3g} TFLOP/s" for n, v in speeds.items())
    for name, line in lines.items():
        console.print(f"{name + ':':18} {line}", highlight=False, markup=False, soft_wrap=True)
    table = Table("check", "device", "result", "s")
    for check in found["checks"]:
        table.add_row(
            check["name"], check["device"], check["error"] or "as in float64", f"{check['seconds']:.2f}"
        )
    console.print(table)
    for sentence in found["advice"]:
        console.print(f"- {sentence}", highlight=False, markup=False, soft_wrap=True)


def _word(there: bool) -> str:
    return "yes" if there else "no"
