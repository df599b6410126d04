"""Checkpoints of a run: written beside, then renamed, so that the newest whole one always stands.

checkpoints/step-00000120/   weights, method state, progress: all of an exact resume
best/step-00000100/          weights of the best validation so far
"""

from __future__ import annotations

import json
import os
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError
from safetensors.torch import load_model, save_model
from transformers import PreTrainedModel

from training.errors import UserError
from training.methods.contract import Method


class CheckpointError(UserError):
    """A checkpoint cannot be read or written."""


def save_checkpoint(run: Path, model: PreTrainedModel, method: Method, progress: dict[str, Any]) -> None:
    """Write `checkpoints/step-N` (N = progress["step"]) and drop the older ones."""

    def write(draft: Path) -> None:
        save_model(model, str(draft / "weights.safetensors"))
        torch.save({"method": method.state_dict()}, draft / "state.pt")
        (draft / "progress.json").write_text(json.dumps(progress, indent=2), "utf-8")

    _write(run / "checkpoints", progress["step"], write)


def load_checkpoint(run: Path, model: PreTrainedModel, method: Method) -> dict[str, Any] | None:
    """Put the newest checkpoint back; returns its progress, or None where there is none."""
    folder = _newest(run / "checkpoints")
    if folder is None:
        return None
    try:
        load_model(model, str(folder / "weights.safetensors"))
        state = torch.load(folder / "state.pt", weights_only=True)
        method.load_state_dict(state["method"])
        progress: dict[str, Any] = json.loads((folder / "progress.json").read_text("utf-8"))
    except Exception as error:  # safetensors, torch and json each have their own errors
        raise CheckpointError(f"checkpoint {folder} cannot be read: {error}") from error
    return progress


def save_best(run: Path, model: PreTrainedModel, step: int) -> None:
    _write(run / "best", step, lambda draft: save_model(model, str(draft / "weights.safetensors")))


def load_best(run: Path, model: PreTrainedModel) -> None:
    """Put the best weights back. Raises `CheckpointError` where there are none."""
    folder = _newest(run / "best")
    if folder is None:
        raise CheckpointError(f"{run / 'best'} holds no weights; the run was never validated")
    load_model(model, str(folder / "weights.safetensors"))


def _newest(parent: Path) -> Path | None:
    return max(parent.glob("step-*"), default=None)


def _write(parent: Path, step: int, write: Callable[[Path], None]) -> None:
    """Write `parent/step-N` beside its place, sync it, move it there, then drop the other steps."""
    folder = parent / f"step-{step:08d}"
    draft = parent / f".step-{step:08d}.draft"
    try:
        shutil.rmtree(draft, ignore_errors=True)
        draft.mkdir(parents=True)
        write(draft)
        for path in [*draft.iterdir(), draft]:
            descriptor = os.open(path, os.O_RDONLY)
            os.fsync(descriptor)
            os.close(descriptor)
        if folder.exists():  # the same step again, after a resume: its content is the same
            shutil.rmtree(draft)
        else:
            os.rename(draft, folder)
    except (OSError, RuntimeError, SafetensorError) as error:
        shutil.rmtree(draft, ignore_errors=True)
        raise CheckpointError(f"{folder} could not be written: {error}") from error
    for old in [*parent.glob("step-*"), *parent.glob(".step-*.draft")]:  # drafts of killed runs, too
        if old != folder:
            shutil.rmtree(old, ignore_errors=True)
