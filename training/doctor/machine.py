"""Facts about a machine: processor, memory, devices, and the libraries that are there."""

from __future__ import annotations

import os
import platform
import shutil
import time
from importlib import metadata
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import torch
import torch.distributed as dist

PACKAGES = ("torch", "transformers", "numpy", "vllm", "peft", "torchjd", "ray", "redis")
SIZE = 1024  # of the square matrices whose product is timed
SECONDS = 0.3  # of a measurement


def machine_facts() -> dict[str, Any]:
    """Return what a machine has, JSON-ready. Sizes are in bytes; what is not there is None."""
    return {
        "python": platform.python_version(),
        "system": f"{platform.system()} {platform.machine()}",
        "instructions": torch.backends.cpu.get_cpu_capability(),
        "bfloat16_instructions": torch.ops.mkldnn._is_mkldnn_bf16_supported(),
        "cores": len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count(),
        "threads": torch.get_num_threads(),
        "memory": _memory(),
        "cuda_build": torch.version.cuda,
        "devices": [_gpu(k) for k in range(torch.cuda.device_count())] if torch.cuda.is_available() else [],
        "gloo": dist.is_available() and dist.is_gloo_available(),
        "nccl": dist.is_available() and dist.is_nccl_available(),
        "compiler": shutil.which("c++") or shutil.which("g++") or shutil.which("clang++"),
        "triton": find_spec("triton") is not None,
        "chromium": shutil.which("chromium")
        or shutil.which("chromium-browser")
        or shutil.which("google-chrome"),
        "packages": {name: _version(name) for name in PACKAGES},
    }


def speed(device: torch.device, dtype: torch.dtype) -> float:
    """Return the floating-point operations a second of a product of two matrices, measured for a moment."""
    a, b = (torch.randn(SIZE, SIZE, device=device).to(dtype) for _ in range(2))
    _wait(a @ b)
    begin, rounds = time.perf_counter(), 0
    while time.perf_counter() - begin < SECONDS:
        _wait(a @ b)
        rounds += 1
    return rounds * 2 * SIZE**3 / (time.perf_counter() - begin)


def _wait(tensor: torch.Tensor) -> None:
    if tensor.is_cuda:
        torch.cuda.synchronize()


def _memory() -> int:
    """Return the bytes that programs may use: the limit of the container, or the machine's memory."""
    machine = os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")
    try:
        return min(machine, int(Path("/sys/fs/cgroup/memory.max").read_text("utf-8")))
    except (OSError, ValueError):  # not there, or "max"
        return machine


def _gpu(number: int) -> dict[str, Any]:
    found = torch.cuda.get_device_properties(number)
    return {
        "name": found.name,
        "memory": found.total_memory,
        "capability": f"{found.major}.{found.minor}",
        "bfloat16": found.major >= 8,
    }


def _version(package: str) -> str | None:
    try:
        return metadata.version(package)
    except metadata.PackageNotFoundError:
        return None
