"""The device that a model computes on: that of a training, and of a command that ranks with its bundle."""

from __future__ import annotations

import os
from typing import Literal

import torch

from training.errors import UserError
from training.settings import DeviceName


def chosen_device(name: DeviceName) -> torch.device:
    """Return the device of this process. Under `torchrun`, each process of a machine has a GPU of its own.

    name: 'cpu', 'cuda', or 'auto' for a GPU if there is one.
    Raises `UserError` if there is no GPU, or fewer than processes.
    """
    count = torch.cuda.device_count() if torch.cuda.is_available() else 0
    if name == "cpu" or (name == "auto" and not count):
        return torch.device("cpu")
    if not count:
        raise UserError("no GPU is there that this torch can use; choose --device cpu")
    own = int(os.environ.get("LOCAL_RANK", "0"))
    if own >= count:
        raise UserError(
            f"process {own} of this machine has no GPU: there are {count}; start torchrun with --nproc-per-node {count}"
        )
    torch.cuda.set_device(own)
    return torch.device("cuda", own)


def engine_device(name: DeviceName) -> Literal["cpu", "cuda"]:
    """Return the device of an engine in this process. Raises what `chosen_device` raises."""
    return "cuda" if chosen_device(name).type == "cuda" else "cpu"
