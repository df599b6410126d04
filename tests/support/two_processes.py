"""A process of tests/gems/test_distributed.py. With WORLD 1 it is the reference, a process alone.

`python two_processes.py RANK WORLD FOLDER` trains once for each of SETTINGS, each process on its share of every batch,
and writes weights, moments, gates and counted bytes to FOLDER/rank{RANK}.pt.
"""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor, nn

from gems import GEMS, collect_knowledge, find_linears

TASKS = ("search", "recommendation")
SETTINGS: dict[str, dict[str, Any]] = {
    "prior": {"gate": "prior", "joint": False},
    "hypergradient": {"gate": "hypergradient", "joint": False},
    "joint": {"gate": "prior"},
    "uniform": {"gate": "uniform", "transport": False, "deflate": False, "joint": False},
}
STEPS = 13
BATCH = 16
ABSENT = {(1, 3), (0, 6), (1, 6), (0, 9), (1, 10)}  # (rank, step): this half of the batch has no search


def shares(step: int, ranks: list[int], world: int) -> tuple[Tensor, dict[str, Tensor], dict[str, Tensor]]:
    """Return the inputs [B, 12] of the given ranks, the targets of each task, and a mask of each task's rows."""
    rng = torch.Generator().manual_seed(step)
    inputs = torch.randn(BATCH, 12, generator=rng, dtype=torch.float64)
    targets = {task: torch.randn(BATCH, 5, generator=rng, dtype=torch.float64) for task in TASKS}
    half = torch.arange(BATCH) // (BATCH // 2)  # which of two processes has it
    rows = {task: torch.ones(BATCH, dtype=torch.bool) for task in TASKS}
    for rank in range(2):
        if (rank, step) in ABSENT:
            rows["search"] &= half != rank
    if world == 2:
        for task in TASKS:
            rows[task] &= torch.isin(half, torch.tensor(ranks))
    return inputs, targets, rows


def train(rank: int, world: int, settings: dict[str, Any]) -> dict[str, Any]:
    torch.manual_seed(0)
    model = nn.Sequential(
        nn.Linear(12, 16, bias=False), nn.LayerNorm(16), nn.Tanh(), nn.Linear(16, 10), nn.Linear(10, 5)
    ).double()
    linears = find_linears(model)
    general = torch.randn(30, 3, generator=torch.Generator().manual_seed(1)).double()
    basis = torch.randn(3, 12, generator=torch.Generator().manual_seed(2)).double()
    knowledge = collect_knowledge(model, [general @ basis], linears)
    group = dist.group.WORLD if world > 1 else None
    common = {"lr": 3e-3, "rank_share": 0.25, "refresh_every": 4, "stagger": 2, "energy": 0.9, "clip": 0.5}
    optimizer = GEMS(
        model, TASKS, linears=linears, knowledge=knowledge, process_group=group, **(common | settings)
    )
    sent: list[int] = []
    plainly = dist.all_reduce

    def counting(tensor: Tensor, *arguments: Any, **named: Any) -> Any:
        sent[-1] += tensor.numel() * tensor.element_size()
        return plainly(tensor, *arguments, **named)

    dist.all_reduce = counting
    refreshed, gates, projected, full = [], [], [], []
    for step in range(STEPS):
        sent.append(0)
        inputs, targets, rows = shares(step, [rank], world)
        outputs = model(inputs)
        losses = {}
        samples = {}
        for task in TASKS:
            if rows[task].any():  # scaled so that the processes' losses add up to the loss of the whole batch
                errors = (outputs - targets[task])[rows[task]].square().mean(1)
                losses[task] = errors.sum() / BATCH
                samples[task] = int(rows[task].sum())
        optimizer.backward(losses, samples=samples)
        optimizer.step()
        refreshed.append(sorted(optimizer.refreshed()))
        gates.append([optimizer.figures()[f"gate.{task}"] for task in TASKS])
        size = {w.name: w.subspaces.projected for w in optimizer.weights}
        projected.append({name: t.numel() * t.element_size() for name, t in size.items()})
        parameters = {w.name: w.parts[0].parameter for w in optimizer.weights}
        full.append({name: p.numel() * p.element_size() for name, p in parameters.items()})
    dist.all_reduce = plainly
    linear = {id(weight.parts[0].parameter) for weight in optimizer.weights}
    return {
        "weights": {name: p.detach().clone() for name, p in model.named_parameters()},
        "moments": {w.name: w.subspaces.first.clone() for w in optimizer.weights},
        "counts": {w.name: dict(w.subspaces.counts) for w in optimizer.weights},
        "knowledge": {
            w.name: knowledge.size(w.name, 0.9, w.parts[0].parameter.shape[1]) for w in optimizer.weights
        },
        "plain_bytes": sum(p.numel() * p.element_size() for p in model.parameters() if id(p) not in linear),
        "plain_parameters": sum(id(p) not in linear for p in model.parameters()),
        "projected_bytes": projected,
        "full_bytes": full,
        "sent": sent,
        "refreshed": refreshed,
        "gates": gates,
    }


def main() -> None:
    rank, world, folder = int(sys.argv[1]), int(sys.argv[2]), Path(sys.argv[3])
    torch.set_num_threads(1)
    dist.init_process_group("gloo", init_method=f"file://{folder / 'meeting'}", rank=rank, world_size=world)
    found = {name: train(rank, world, settings) for name, settings in SETTINGS.items()}
    torch.save(found, folder / f"rank{rank}.pt")
    dist.destroy_process_group()


if __name__ == "__main__":
    main()
