"""Plain advice from the facts about a machine and the results of the checks."""

from __future__ import annotations

from typing import Any

GB = 10**9


def advice_of(
    facts: dict[str, Any], checks: list[dict[str, Any]], speeds: dict[str, dict[str, float]]
) -> list[str]:
    """Return sentences that say what to do or to expect.

    facts: of `machine_facts`.
    checks: of `device_checks`, of all devices.
    speeds: device → type of number → operations a second.
    """
    said = [
        f"{check['name']} on {check['device']} is broken: {check['error']}. Do not train or serve so there"
        for check in checks
        if check["error"]
    ]
    if not facts["devices"]:
        built = facts["cuda_build"]
        said.append(
            "No GPU is in use: "
            + (
                f"torch is built for CUDA {built}, but sees none (driver? container without --gpus?)"
                if built
                else "this torch is built for CPUs alone. Where there is a GPU, install the build for it (pytorch.org)"
            )
        )
        said.append(_of_cpu(speeds["cpu"]))
    for gpu in facts["devices"]:
        if not gpu["bfloat16"]:
            said.append(f"{gpu['name']} has no bfloat16: trainings use float32 there")
    if len(facts["devices"]) > 1 and not facts["nccl"]:
        said.append("Several GPUs need a torch with NCCL to train together")
    if facts["memory"] < 4 * GB:
        said.append(
            f"{facts['memory'] / GB:.1f} GB of memory are little for a training: small backbones only (gems plan says)"
        )
    if facts["threads"] > facts["cores"]:
        said.append(f"torch uses {facts['threads']} threads on {facts['cores']} cores: set OMP_NUM_THREADS")
    if facts["devices"] and facts["packages"]["vllm"] is None:
        said.append("vLLM is not installed; the torch engine serves without it (docs/engines.md)")
    return said


def _of_cpu(speeds: dict[str, float]) -> str:
    ratio = speeds["bfloat16"] / speeds["float32"]
    said = f"On this CPU, bfloat16 products have {ratio:.2g} times the speed of float32: "
    return said + (
        "try --backbone.precision autocast" if ratio > 1.5 else "leave --backbone.precision at auto"
    )
