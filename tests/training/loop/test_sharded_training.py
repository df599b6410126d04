"""`gems train --backbone.shard`: the bundle of one process, a resume with more of them, and what is refused."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import pytest
import torch
import torch.distributed as dist
from rich.console import Console
from safetensors.torch import load_file
from support.walks import make_data, settings

from training.config import TrainConfig
from training.errors import UserError
from training.loop.checkpoint import CheckpointError
from training.pipeline import train
from training.prepare.preparation import open_prepared
from training.run.parallel import Parallel

QUIET = Console(quiet=True)
SHORT = {
    "backbone.dropout": 0.0, "optimiser.epochs": 2, "optimiser.part_tokens": 256, "gems.refresh_every": 4,
    "gems.stagger": 2, "gems.gate": "prior", "run.checkpoint_every": 1e-4, "identifiers.scheme": "atomic",
    "validation.every": 0.25,
}  # fmt: skip
SHARDED = {"backbone.shard": True, "backbone.activation_checkpointing": True}


@pytest.fixture(scope="module")
def data(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return make_data(tmp_path_factory.mktemp("data") / "walks", users=60)


def command(data: Path, out: Path, config: TrainConfig, processes: int) -> list[str]:
    config.save(out.parent / "config.yaml")
    several = ["-m", "torch.distributed.run", "--nproc-per-node", str(processes), "--standalone"]
    return [
        sys.executable, *(several if processes > 1 else []), "-m", "training.cli.main", "train", "--data", str(data),
        "--out", str(out), "--config", str(out.parent / "config.yaml"),
    ]  # fmt: skip


def losses(run: Path) -> list[float]:
    lines = [json.loads(line) for line in (run / "metrics.jsonl").read_text("utf-8").splitlines()]
    return [line["search.loss"] for line in lines if "learning_rate" in line]


def test_two_processes_go_on_where_one_was_stopped_and_publish_the_bundle_of_one(
    data: Path, tmp_path: Path
) -> None:
    config = settings(SHORT, SHARDED)
    alone, run = tmp_path / "alone", tmp_path / "run"
    assert train(data, alone, settings(SHORT), console=QUIET)
    one = subprocess.Popen(command(data, run, config, 1), stdout=subprocess.DEVNULL, stderr=subprocess.PIPE)
    try:
        until = time.monotonic() + 120
        while not list((run / "checkpoints").glob("step-*")) and time.monotonic() < until:
            assert one.poll() is None, one.stderr and one.stderr.read()
            time.sleep(0.02)
        one.send_signal(signal.SIGTERM)
        one.communicate(timeout=120)
    finally:
        one.kill()
    assert not (run / "bundle").exists()
    (stopped,) = (run / "checkpoints").glob("step-*")
    assert {"frame.pt", "shards", "progress.json"} == {path.name for path in stopped.iterdir()}
    done = len(losses(run))
    assert 0 < done < len(losses(alone))
    two = subprocess.run(
        [*command(data, run, config, 2), "--resume"], capture_output=True, text=True, check=False, timeout=300
    )
    assert two.returncode == 0, two.stderr[-3000:]
    assert f"resumed at step {done}" in two.stdout
    (kept,) = (run / "checkpoints").glob("step-*")
    assert len(list((kept / "shards").glob("*.distcp"))) == 2
    assert losses(run) == pytest.approx(losses(alone), rel=3e-3)
    a, b = (load_file(each / "bundle" / "model.safetensors") for each in (alone, run))
    assert a.keys() == b.keys()
    before = open_prepared(alone / "prepared").model.state_dict()
    moved = sum(float((a[name] - before[name]).square().sum()) for name in a) ** 0.5
    apart = sum(float((a[name] - b[name]).square().sum()) for name in a) ** 0.5
    # Adam divides rounding noise by rounding noise where a gradient is about zero, as with data parallel processes;
    # tests/gems/test_sharding.py shows equality in double precision
    assert apart < 0.2 * moved, (apart, moved)


def test_the_bundle_of_sharded_adapters_is_that_of_plain_ones(data: Path, tmp_path: Path) -> None:
    bundles = []
    for name, changes in (("plain", {}), ("sharded", SHARDED)):
        config = settings(SHORT, {"method": "lora", "lora.rank": 4, "optimiser.epochs": 0.5}, changes)
        bundle = train(data, tmp_path / name, config, console=QUIET)
        assert bundle is not None
        bundles.append(load_file(bundle / "model.safetensors"))
    before = load_file(tmp_path / "plain" / "prepared" / "backbone" / "model.safetensors")
    for name, weight in bundles[0].items():
        assert torch.allclose(bundles[1][name], weight, rtol=0, atol=1e-4), name
    assert sum("dense" in name and not torch.equal(w, before[name]) for name, w in bundles[1].items()) == 3


@pytest.mark.parametrize(
    ("changes", "said"),
    [
        (
            {"method": "lora-moe"},
            "'lora-moe' does not train sharded models: its experts are no plain weights",
        ),
        ({"backbone.precision": "bfloat16"}, r"backbone\.precision 'bfloat16' does not go"),
        ({"gems.output_bases": True, "knowledge.null_space": False}, r"gems\.output_bases on does not go"),
        ({"gems.transport": False}, r"gems\.transport off does not go"),
    ],
)
def test_what_does_not_go_with_it_is_refused_before_anything_is_written(
    changes: dict[str, Any], said: str, data: Path, tmp_path: Path
) -> None:
    with pytest.raises(UserError, match=said):
        train(data, tmp_path / "run", settings(SHORT, SHARDED, changes), console=QUIET)
    assert not (tmp_path / "run").exists()


def test_a_checkpoint_of_another_form_or_a_broken_one_is_named(data: Path, tmp_path: Path) -> None:
    run = tmp_path / "run"
    short = SHORT | {"optimiser.epochs": 0.5}
    config = settings(short, SHARDED)
    assert train(data, run, config, console=QUIET)
    (run / "bundle").rename(tmp_path / "published")
    with pytest.raises(UserError, match=r"other settings \(.*backbone\.shard"):
        train(data, run, settings(short), resume=True, console=QUIET)
    next(run.glob("checkpoints/step-*/shards/*.distcp")).write_bytes(b"cut off")
    with pytest.raises(CheckpointError, match="holds no sharded checkpoint that can be read"):
        train(data, run, config, resume=True, console=QUIET)


@pytest.mark.skipif(dist.is_nccl_available(), reason="this torch has NCCL")
def test_processes_on_gpus_need_nccl(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(os.environ, "WORLD_SIZE", "2")
    with pytest.raises(UserError, match="need NCCL, which this torch has not"):
        Parallel.start(torch.device("cuda"))
