"""Products in full precision."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from contextlib import ExitStack, contextmanager

import torch


@contextmanager
def full_precision(devices: Iterable[str]) -> Iterator[None]:
    """Compute products of float32 numbers in float32: without autocast, TF32 or bf16 on the CPU.

    devices: kinds of devices, for example `cpu` and `cuda`.
    An update N Vᵀ leaves other directions alone as exactly as V is orthogonal to them and as the product is formed.
    """
    backends = (torch.backends.cuda.matmul, torch.backends.mkldnn.matmul)  # type: ignore[attr-defined]
    before = [backend.fp32_precision for backend in backends]
    with ExitStack() as stack:
        for device in devices:
            if torch.amp.is_autocast_available(device):  # not on `meta`, where nothing is computed
                stack.enter_context(torch.autocast(device, enabled=False))
        try:
            for backend in backends:
                backend.fp32_precision = "ieee"
            yield
        finally:
            for backend, precision in zip(backends, before, strict=True):
                backend.fp32_precision = precision
