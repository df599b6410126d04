"""Checkpoints are complete or absent, also if the disk is full."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest
import torch
from support.bundles import make_model
from support.paths import ROOT

from index.sequence.events import Task
from training.config import TrainConfig
from training.loop.checkpoint import (
    CheckpointError,
    drop_other_best,
    load_best,
    load_checkpoint,
    save_best,
    save_checkpoint,
)
from training.methods.registry import make_method


def make(seed: int = 0, method: str = "full"):  # type: ignore[no-untyped-def]
    model = make_model(64, "gpt-neox", seed=seed)
    return model, make_method(model, TrainConfig.combined({"backbone.name": "scratch", "method": method}), 40)


@pytest.mark.parametrize("name", ["gems", "subspace", "full", "lora", "lora-moe", "pcgrad"])
def test_only_the_newest_checkpoint_is_kept_and_it_restores_everything(name: str, tmp_path: Path) -> None:
    model, method = make(method=name)
    loss = model(torch.tensor([[1, 2, 3]])).logits.square().sum()
    method.backward(
        {Task.SEARCH: loss, Task.RECOMMENDATION: 2 * loss}, {Task.SEARCH: 0.5, Task.RECOMMENDATION: 0.5}
    )
    method.step(1e-2)
    for step in (3, 12):
        save_checkpoint(tmp_path, model, method, {"step": step})
    assert [p.name for p in (tmp_path / "checkpoints").iterdir()] == ["step-00000012"]
    other, fresh = make(seed=1, method=name)
    assert load_checkpoint(tmp_path, other, fresh) == {"step": 12}
    for a, b in zip(model.parameters(), other.parameters(), strict=True):
        assert torch.equal(a, b)
    assert str(method.state_dict()) == str(fresh.state_dict())
    assert load_checkpoint(tmp_path / "nothing", other, fresh) is None


def test_a_damaged_checkpoint_and_missing_best_weights_are_named(tmp_path: Path) -> None:
    model, method = make()
    save_checkpoint(tmp_path, model, method, {"step": 1})
    path = tmp_path / "checkpoints" / "step-00000001" / "weights.safetensors"
    path.write_bytes(path.read_bytes()[:100])
    with pytest.raises(CheckpointError, match="step-00000001"):
        load_checkpoint(tmp_path, model, method)
    with pytest.raises(CheckpointError, match="best"):
        load_best(tmp_path, model, 5)
    save_best(tmp_path, model, 5)
    load_best(tmp_path, model, 5)


def test_best_weights_stay_until_a_checkpoint_knows_the_better_ones(tmp_path: Path) -> None:
    model, _ = make()
    save_best(tmp_path, model, 5)
    save_best(tmp_path, model, 9)
    load_best(tmp_path, model, 5)  # a run that was killed here continues from a checkpoint that names 5
    drop_other_best(tmp_path, 7)  # not there: nothing is dropped
    drop_other_best(tmp_path, 9)
    assert [p.name for p in (tmp_path / "best").iterdir()] == ["step-00000009"]
    with torch.no_grad():
        next(model.parameters()).add_(1)
    save_best(tmp_path, model, 9)  # again, by another clock
    other, _ = make(seed=1)
    load_best(tmp_path, other, 9)
    assert torch.equal(next(other.parameters()), next(model.parameters()))


def test_a_full_disk_leaves_the_checkpoint_before(tmp_path: Path) -> None:
    model, method = make()
    save_checkpoint(tmp_path, model, method, {"step": 1})
    script = (
        "import resource, signal, sys; sys.path.insert(0, 'tests')\n"
        "from pathlib import Path\n"
        "from support.bundles import make_model\n"
        "from training.loop.checkpoint import CheckpointError, save_checkpoint\n"
        "from training.config import TrainConfig\n"
        "from training.methods.registry import make_method\n"
        "model = make_model(64, 'gpt-neox')\n"
        "signal.signal(signal.SIGXFSZ, signal.SIG_IGN)\n"
        "resource.setrlimit(resource.RLIMIT_FSIZE, (20000, 20000))\n"
        "try:\n"
        "    method = make_method(model, TrainConfig(method='full'), 40)\n"
        "    save_checkpoint(Path(sys.argv[1]), model, method, {'step': 2})\n"
        "except CheckpointError as error:\n"
        "    sys.exit(7)\n"
    )
    root = ROOT
    result = subprocess.run([sys.executable, "-c", script, str(tmp_path)], cwd=root, check=False)
    assert result.returncode == 7
    assert [p.name for p in (tmp_path / "checkpoints").iterdir()] == ["step-00000001"]
