"""Checkpoints of sharded models: every process writes what it holds, and any number of processes reads it.

folder/frame.pt   the state without its tensors, each of which is a tensor on torch's meta device
folder/shards/    the tensors, by `torch.distributed.checkpoint`
"""

from __future__ import annotations

import warnings
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor, nn
from torch.distributed.checkpoint.api import CheckpointException
from torch.distributed.checkpoint.state_dict_loader import load
from torch.distributed.checkpoint.state_dict_saver import save
from torch.distributed.device_mesh import DeviceMesh
from torch.distributed.tensor import DTensor, Shard, zeros

from gems.model.errors import GemsError
from gems.weights.shards import local, plain_rows

FRAME, SHARDS = "frame.pt", "shards"


def save_sharded(folder: Path, state: Mapping[str, Any]) -> None:
    """Write a state, such as `{"model": weights_of(model), "optimizer": optimizer.state_dict()}`.

    folder: exists. All processes write to the same one; its size does not depend on their number.
    state: nested dicts and lists of tensors, `DTensor`s and plain values. Whatever is no `DTensor` is the same on every
        process.
    Every process calls it. Raises `GemsError` if it cannot be written.
    """
    tensors: dict[str, Tensor] = {}
    sharded: dict[str, int] = {}

    def take(name: str, tensor: Tensor) -> Tensor:
        tensors[name] = tensor.detach()
        if isinstance(tensor, DTensor):
            (placement,) = tensor.placements
            if isinstance(placement, Shard):
                sharded[name] = placement.dim
        return torch.empty(tensor.shape, dtype=tensor.dtype, device="meta")

    frame = _map(state, take)
    try:
        _dcp(save, tensors, folder)
        if not dist.is_initialized() or dist.get_rank() == 0:
            torch.save({"state": frame, "sharded": sharded}, folder / FRAME)
    except (Exception, CheckpointException) as error:
        raise GemsError(f"{folder} could not be written: {_said(error)}") from error


def load_sharded(folder: Path, mesh: DeviceMesh | None = None) -> dict[str, Any]:
    """Return a state that `save_sharded` has written, whatever the number of processes was.

    mesh: the processes that the model is sharded over. Sharded tensors are `DTensor`s then, and each process reads what
        it holds. Without a mesh they are whole, on the CPU.
    Every process calls it. Raises `GemsError` if the folder holds no such state, or cannot be read.
    """
    try:
        found = torch.load(folder / FRAME, map_location="cpu", weights_only=True)
        frame, sharded = found["state"], found["sharded"]
        tensors: dict[str, Tensor] = {}

        def give(name: str, meta: Tensor) -> Tensor:
            if mesh is not None and name in sharded:
                placement = [Shard(sharded[name])]
                tensors[name] = zeros(meta.shape, dtype=meta.dtype, device_mesh=mesh, placements=placement)
            else:
                tensors[name] = torch.zeros(meta.shape, dtype=meta.dtype)
            return tensors[name]

        state: dict[str, Any] = _map(frame, give)
        _dcp(load, tensors, folder)
    except (Exception, CheckpointException) as error:  # files may be missing, cut off, or of something else
        raise GemsError(f"{folder} holds no sharded checkpoint that can be read: {_said(error)}") from error
    return state


def weights_of(model: nn.Module) -> dict[str, Tensor]:
    """Return the weights and buffers of a model's `state_dict`, by one name each where they are tied."""
    names = {name for name, _ in (*model.named_parameters(), *model.named_buffers())}
    return {name: tensor for name, tensor in model.state_dict().items() if name in names}


@torch.no_grad()
def load_weights(model: nn.Module, state: Mapping[str, Tensor]) -> None:
    """Load the weights of a model from the `weights_of` one, whether whole or sharded.

    Raises `GemsError` if names, shapes or types differ; the model is unchanged then.
    """
    own = weights_of(model)
    for name in own.keys() ^ state.keys():
        raise GemsError(f"the checkpoint is of another model: only one of them has {name}")
    for name, tensor in own.items():
        stored = state[name]
        if stored.shape != tensor.shape:
            raise GemsError(
                f"{name} is {tuple(stored.shape)} in the checkpoint, {tuple(tensor.shape)} in the model"
            )
        if stored.dtype != tensor.dtype:
            raise GemsError(
                f"{name} is {stored.dtype} in the checkpoint, {tensor.dtype} in the model: a state goes on in the "
                "precision that it was made in"
            )
    for name, tensor in own.items():
        shard = plain_rows(tensor, name)
        local(tensor).copy_(shard.own(state[name], shard.dim))


def _said(error: BaseException) -> str:
    """Return what went wrong, of the first process that it did in; the library's own message is all their traces."""
    if isinstance(error, CheckpointException):
        rank, (cause, _) = next(iter(error.failures.items()))
        return f"{type(cause).__name__} in process {rank}: {cause}"
    return f"{type(error).__name__}: {error}"


def _map(value: Any, change: Callable[[str, Tensor], Tensor], name: str = "") -> Any:
    """Return nested dicts, lists and tuples with other tensors. Numbers, tensors of no dimension too, stay."""
    if isinstance(value, Tensor) and value.ndim:
        return change(name, value)
    if isinstance(value, Tensor):
        return value.detach().cpu()
    if isinstance(value, Mapping):
        return {key: _map(each, change, f"{name}/{key}") for key, each in value.items()}
    if isinstance(value, list | tuple):
        return type(value)(_map(each, change, f"{name}/{k}") for k, each in enumerate(value))
    return value


def _dcp(call: Callable[..., Any], tensors: dict[str, Tensor], folder: Path) -> None:
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", "torch.distributed is disabled")  # a single process is as good
        call(tensors, checkpoint_id=folder / SHARDS, no_dist=not dist.is_initialized())
