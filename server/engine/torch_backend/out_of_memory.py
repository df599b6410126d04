"""Recognising errors of memory that ran out."""

from __future__ import annotations

import torch

# Messages of the allocators of CPUs, files and GPUs, in lower case; the last is oneDNN's.
_SAID = ("allocate memory", "bad_alloc", "cublas_status_alloc_failed", "could not create a primitive")


def is_out_of_memory(error: BaseException) -> bool:
    """Whether an error means that memory ran out. Only the GPU allocator has an exception type of its own."""
    if isinstance(error, (MemoryError, torch.OutOfMemoryError)):
        return True
    return isinstance(error, (RuntimeError, OSError)) and any(said in str(error).lower() for said in _SAID)
