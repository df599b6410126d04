"""A process of tests/gems/test_sharding.py: it trains a model that FSDP2 has sharded, or is the reference, alone.

`python sharded_processes.py RANK WORLD FOLDER` trains once for each of SETTINGS, each process on its share of every
batch, and writes what process 0 sees of the whole to FOLDER/rank{RANK}.pt.
"""

from __future__ import annotations

import os
import subprocess
import sys
import warnings
from pathlib import Path
from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor, nn
from torch.distributed.device_mesh import init_device_mesh
from torch.distributed.fsdp import fully_shard
from torch.distributed.tensor import DTensor

from bench.traffic import GRADIENTS, Traffic
from gems import (
    GEMS,
    collect_knowledge,
    find_linears,
    load_sharded,
    load_weights,
    save_sharded,
    weights_of,
)

TASKS = ("search", "recommendation")
SETTINGS: dict[str, dict[str, Any]] = {
    "joint": {},
    "tasks apart": {"joint": False, "gate": "prior"},
    "hypergradient": {"gate": "hypergradient", "relative": True, "growth_limit": 1.01},
    "hypergradient, tasks apart": {"gate": "hypergradient", "joint": False, "clip": None},
    "soft null space": {"softness": 0.1, "rank_scaling": True, "deflate": False},
    "sites": {"sites": True, "relative": True, "gate": "hypergradient", "joint": False},
    "tables": {"tables": True, "knowledge": None},
    "one task": {"tasks": ()},
    "plain sharded, replicated and frozen": {"root": False, "weight_decay": 0.1},
    "parts": {"parts": 2},
    "bf16": {"dtype": torch.bfloat16, "knowledge": None, "parts": 1},
}
OF_FOUR = ("joint", "sites")  # what four processes try
RELAY = {"gate": "hypergradient", "joint": False, "sites": True, "relative": True, "growth_limit": 1.01}
STEPS = 7
BATCH = 16
WIDTH = 12


class Block(nn.Module):
    """A block whose sizes leave some processes with fewer rows, and with none of a bias."""

    def __init__(self) -> None:
        super().__init__()
        self.norm = nn.LayerNorm(WIDTH)
        self.gate = nn.Linear(WIDTH, 18, bias=False)
        self.up = nn.Linear(WIDTH, 18)
        self.down = nn.Linear(18, WIDTH, bias=False)
        self.scale = nn.Parameter(torch.ones(5))

    def forward(self, x: Tensor) -> Tensor:
        inner = self.norm(x)
        return x + self.down(torch.tanh(self.gate(inner)) * self.up(inner)) * self.scale.mean()


class Model(nn.Module):
    """Rows of a table, two blocks and a head."""

    def __init__(self) -> None:
        super().__init__()
        self.table = nn.Embedding(40, WIDTH)
        self.blocks = nn.ModuleList(Block() for _ in range(2))
        self.head = nn.Linear(WIDTH, 7)

    def forward(self, ids: Tensor) -> Tensor:
        x = self.table(ids)
        for block in self.blocks:
            x = block(x)
        return self.head(x.sum(1))


def batch_of(step: int) -> tuple[Tensor, dict[str, Tensor], dict[str, Tensor]]:
    """Return ids [BATCH, 3], targets of each task, and a mask of each task's rows."""
    rng = torch.Generator().manual_seed(step)
    ids = torch.randint(0, 40, (BATCH, 3), generator=rng)
    targets = {task: torch.randn(BATCH, 7, generator=rng, dtype=torch.float64) for task in TASKS}
    rows = {task: torch.rand(BATCH, generator=rng) < 0.7 for task in TASKS}
    if step in (3, 4):  # search is missing altogether, or in all processes but the first
        rows["search"][0 if step == 3 else 2 :] = False
    return ids, targets, rows


def made(
    rank: int, world: int, settings: dict[str, Any], *, sharded: bool | None = None
) -> tuple[Model, GEMS, dict[str, Any]]:
    """Return the model, its optimizer, and the settings that are not the optimizer's."""
    settings = dict(settings)
    mine = {"root": settings.pop("root", True), "parts": settings.pop("parts", 1)}
    torch.manual_seed(0)
    model = Model().to(settings.pop("dtype", torch.float64))
    linears = find_linears(model)
    if "knowledge" not in settings:
        general = [torch.randint(0, 6, (30, 3), generator=torch.Generator().manual_seed(1))]
        settings["knowledge"] = collect_knowledge(model, general, linears)
    if world > 1 if sharded is None else sharded:
        mesh = init_device_mesh("cpu", (world,))
        for module in [*model.blocks, *([model] if mine["root"] else [])]:
            fully_shard(module, mesh=mesh)
    if not mine["root"]:
        model.blocks[0].norm.weight.requires_grad_(False)
    if settings.pop("sites", False):
        settings["sites"] = [[f"blocks.{k}.gate.weight", f"blocks.{k}.up.weight"] for k in range(2)]
    if settings.pop("tables", False):
        settings["tables"] = {"table": model.table.weight}
    common = {"lr": 3e-3, "rank_share": 0.25, "refresh_every": 3, "stagger": 2, "energy": 0.6, "clip": 0.5}
    group = dist.group.WORLD if world > 1 else None
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # of ranks that are cut down
        optimizer = GEMS(
            model, settings.pop("tasks", TASKS), linears=find_linears(model), process_group=group,
            **(common | settings),
        )  # fmt: skip
    return model, optimizer, mine


def step_of(model: Model, optimizer: GEMS, step: int, rank: int, world: int, parts: int) -> None:
    """Make a step on this process's share of a batch."""
    ids, targets, rows = batch_of(step)
    present = [task for task in TASKS if rows[task].any()]
    for k in range(parts):
        mine = torch.arange(BATCH) % (world * parts) == rank * parts + k
        outputs = model(ids[mine]).double()
        losses = {}
        for task in present:  # also one that has no row here: every process runs the same passes
            errors = (outputs - targets[task][mine]).square().mean(1)
            losses[task] = errors[rows[task][mine]].sum() / BATCH
        samples = {task: int(rows[task][mine].sum()) for task in present}
        if optimizer.tasks:
            optimizer.backward(losses, samples=samples)
        else:
            sum(losses.values(), torch.zeros(())).backward()
    optimizer.step()


def whole(tensor: Tensor) -> Tensor:
    """Return all of a tensor, on every process."""
    return (tensor.full_tensor() if isinstance(tensor, DTensor) else tensor).detach().clone()


def train(
    rank: int, world: int, settings: dict[str, Any], steps: int = STEPS, *, sharded: bool | None = None
) -> dict[str, Any]:
    """Train, and return what is to be the same for every number of processes."""
    model, optimizer, mine = made(rank, world, settings, sharded=sharded)
    figures, refreshed, sent = [], [], []
    for step in range(steps):
        with Traffic() as traffic:
            step_of(model, optimizer, step, rank, world, mine["parts"])
        sent.append(traffic.sent[GRADIENTS])
        figures.append(optimizer.figures() | optimizer.sensitivity)
        refreshed.append({n: dict(f) for n, f in optimizer.refreshed().items()})
    return {
        "weights": {name: whole(p) for name, p in model.named_parameters()},
        "exact": {name: whole(each) for name, each in optimizer.exact_weights().items()},
        "figures": figures,
        "refreshed": refreshed,
        "counts": {w.name: dict(w.subspaces.counts) for w in optimizer.weights},
        "bases": {w.name: w.subspaces.basis.clone() for w in optimizer.weights},
        "sent": sent,
        "columns": {w.name: w.subspaces.first.shape[1] for w in optimizer.weights},
        "rows": {w.name: w.subspaces.first.shape[0] for w in optimizer.weights},
    }


def relay(rank: int, world: int, before: Path | None, after: Path, steps: range) -> dict[str, Any]:
    """Go on from a checkpoint for some steps, and write the next one. Return the weights."""
    model, optimizer, mine = made(rank, world, RELAY)
    if before is not None:
        state = load_sharded(before, init_device_mesh("cpu", (world,)) if world > 1 else None)
        load_weights(model, state["model"])
        optimizer.load_state_dict(state["optimizer"])
    for step in steps:
        step_of(model, optimizer, step, rank, world, mine["parts"])
    after.mkdir(exist_ok=True)
    save_sharded(after, {"model": weights_of(model), "optimizer": optimizer.state_dict()})
    return {name: whole(p) for name, p in model.named_parameters()}


def started(
    world: int, folder: Path, *arguments: object, file: Path = Path(__file__)
) -> list[dict[str, Any]]:
    """Run a file, this one by default, as so many processes, and return what each has found."""
    path = os.pathsep.join(str(Path(__file__).parents[k]) for k in (1, 2))
    command = [sys.executable, str(file)]
    folder.mkdir(exist_ok=True)
    processes = [
        subprocess.Popen(
            [*command, *map(str, (rank, world, folder, *arguments))],
            env=os.environ | {"PYTHONPATH": path, "OMP_NUM_THREADS": "1"},
            stderr=subprocess.PIPE,
            text=True,
        )
        for rank in range(world)
    ]
    try:
        for process in processes:
            _, errors = process.communicate(timeout=180)
            assert process.returncode == 0, errors[-3000:]
    finally:
        for process in processes:
            process.kill()
    return [torch.load(folder / f"rank{rank}.pt") for rank in range(world)]


def main() -> None:
    """See the head of this file. With `BEFORE AFTER FIRST LAST` as well, make a leg of a relay."""
    rank, world, folder = int(sys.argv[1]), int(sys.argv[2]), Path(sys.argv[3])
    torch.set_num_threads(1)
    dist.init_process_group("gloo", init_method=f"file://{folder / 'meeting'}", rank=rank, world_size=world)
    if len(sys.argv) > 4:
        before = None if sys.argv[4] == "-" else Path(sys.argv[4])
        steps = range(int(sys.argv[6]), int(sys.argv[7]))
        torch.save(relay(rank, world, before, Path(sys.argv[5]), steps), folder / f"rank{rank}.pt")
        dist.destroy_process_group()
        return
    found = {
        name: train(rank, world, settings)
        for name, settings in SETTINGS.items()
        if world == 2 or name in OF_FOUR
    }
    torch.save(found, folder / f"rank{rank}.pt")
    dist.destroy_process_group()


if __name__ == "__main__":
    main()
