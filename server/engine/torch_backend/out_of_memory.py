"""When memory runs out."""

from __future__ import annotations

import torch

# What the allocators of CPUs, of files and of GPUs say, in small letters; oneDNN says no more than this.
_SAID = ("allocate memory", "bad_alloc", "cublas_status_alloc_failed", "could not create a primitive")


def is_out_of_memory(error: BaseException) -> bool:
    """Whether that is why something failed. Only the allocator of GPUs raises a kind of its own."""
    if isinstance(error, (MemoryError, torch.OutOfMemoryError)):
        return True
    return isinstance(error, (RuntimeError, OSError)) and any(said in str(error).lower() for said in _SAID)
