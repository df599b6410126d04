"""Checkpoints of a run. Each is written as a draft and then renamed, so that a complete one always exists.

checkpoints/step-00000120/   weights, method state, progress: everything for an exact resume; of a sharded model
                             (`gems.checkpoint`), the rows that each process holds
best/step-00000100/          weights of the best validation so far, and exact ones of those in bfloat16
"""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable, Mapping
from contextlib import AbstractContextManager, nullcontext
from pathlib import Path
from typing import Any, Protocol

import torch
from safetensors import SafetensorError
from safetensors.torch import load_file, load_model, save_file, save_model
from torch import Tensor, nn
from torch.distributed.device_mesh import DeviceMesh
from transformers import PreTrainedModel

from gems import GemsError, load_sharded, load_weights, save_sharded, weights_of
from index.files import atomic_folder
from index.records import read_json
from training.errors import UserError
from training.methods.method import Method
from training.run.parallel import Parallel

EXACT = "exact.safetensors"


class Stateful(Protocol):
    """Part of a checkpoint besides weights: a method, or the optimisers of one."""

    def state_dict(self) -> dict[str, Any]: ...
    def load_state_dict(self, state: dict[str, Any]) -> None: ...


class CheckpointError(UserError):
    """A checkpoint cannot be read or written."""


def save_checkpoint(run: Path, model: nn.Module, method: Stateful, progress: dict[str, Any]) -> None:
    """Write `checkpoints/step-N` (N = progress["step"]) and delete the older ones."""

    def write(draft: Path) -> None:
        save_model(model, str(draft / "weights.safetensors"))
        torch.save({"method": method.state_dict()}, draft / "state.pt")
        (draft / "progress.json").write_text(json.dumps(progress, indent=2), "utf-8")

    _write(run / "checkpoints", progress["step"], write)
    _drop_others(run / "checkpoints" / f"step-{progress['step']:08d}")


def save_sharded_checkpoint(
    run: Path, model: PreTrainedModel, method: Method, progress: dict[str, Any], parallel: Parallel
) -> None:
    """Write `checkpoints/step-N` of a sharded model; every process calls it."""
    folder = run / "checkpoints" / f"step-{progress['step']:08d}"
    state = {"model": weights_of(model), "method": method.state_dict()}
    try:
        with _draft(folder) if parallel.main else nullcontext(folder) as own:
            draft = parallel.agree(own)  # the drafts of atomic folders have names of their own
            save_sharded(draft, state)
            if parallel.main:
                (draft / "progress.json").write_text(json.dumps(progress, indent=2), "utf-8")
    except (OSError, GemsError) as error:
        raise CheckpointError(f"{folder} could not be written: {error}") from error
    if parallel.main:
        _drop_others(folder)


def load_checkpoint(
    run: Path,
    model: nn.Module,
    method: Stateful,
    *,
    sharded: bool = False,
    mesh: DeviceMesh | None = None,
) -> dict[str, Any] | None:
    """Restore the newest checkpoint. Return its progress, or None if there is no checkpoint.

    sharded: whether it was written by `save_sharded_checkpoint`.
    mesh: the processes that the model is sharded over now.
    Raises `CheckpointError` if it cannot be read.
    """
    folder = _newest(run / "checkpoints")
    if folder is None:
        return None
    try:
        if sharded:
            state = load_sharded(folder, mesh)
            load_weights(model, state["model"])
        else:
            load_model(model, str(folder / "weights.safetensors"))
            state = torch.load(folder / "state.pt", map_location="cpu", weights_only=True)
        method.load_state_dict(state["method"])
        progress: dict[str, Any] = read_json(folder / "progress.json")
    except Exception as error:  # safetensors, torch and json each have their own errors
        raise CheckpointError(f"checkpoint {folder} cannot be read: {error}") from error
    return progress


def save_best(
    run: Path, model: PreTrainedModel, step: int, exact: Mapping[str, Tensor] | None = None
) -> None:
    """Write `best/step-N`. The previous one stays until `drop_other_best`.

    That is called after the next checkpoint: a run that is killed in between goes on from an older checkpoint,
    which needs the previous one.
    exact: float32 values of weights that the model holds in bfloat16.
    """

    def write(draft: Path) -> None:
        save_model(model, str(draft / "weights.safetensors"))
        if exact:
            save_file({name: each.contiguous() for name, each in exact.items()}, draft / EXACT)

    _write(run / "best", step, write)


def drop_other_best(run: Path, step: int) -> None:
    """Delete all best weights except those of a step. Do nothing if those do not exist."""
    _drop_others(run / "best" / f"step-{step:08d}")


def load_best(run: Path, model: PreTrainedModel, step: int) -> None:
    """Restore the best weights. Raises `CheckpointError` if there are none."""
    path = run / "best" / f"step-{step:08d}" / "weights.safetensors"
    if not path.exists():
        raise CheckpointError(f"{run / 'best'} holds no weights of step {step}")
    load_model(model, str(path))
    if path.with_name(EXACT).exists():
        model.load_state_dict(load_file(path.with_name(EXACT)), strict=False)


def _newest(parent: Path) -> Path | None:
    # A process that was killed while it replaced the only step has left that one as an old draft.
    old = max(parent.glob(".step-*.old.draft"), default=None)
    return max(parent.glob("step-*"), default=old)


def _write(parent: Path, step: int, write: Callable[[Path], None]) -> None:
    """Write `parent/step-N` as a whole. Raises `CheckpointError` if the disk does not take it."""
    folder = parent / f"step-{step:08d}"
    try:
        with _draft(folder) as draft:
            write(draft)
    except (OSError, RuntimeError, SafetensorError) as error:
        raise CheckpointError(f"{folder} could not be written: {error}") from error


def _draft(folder: Path) -> AbstractContextManager[Path]:
    """Make a folder as a whole. A resumed run may write the same step again; by the clock, its content may differ."""
    return atomic_folder(folder, single_writer=True, replace=True)


def _drop_others(folder: Path) -> None:
    """Delete the other steps and the drafts of killed runs, if the folder of this step is complete."""
    if folder.exists():
        for old in [*folder.parent.glob("step-*"), *folder.parent.glob(".step-*.draft")]:
            if old != folder:
                shutil.rmtree(old, ignore_errors=True)
