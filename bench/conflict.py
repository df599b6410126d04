"""`python -m bench.conflict --data DIR --backbone DIR --json F`: two tasks that want opposite things of one history.

*plain*: whether the item after the last ten is one of the most popular, which have three quarters of the events.
*permuted*: the opposite. A marker before the history names the task, so that a model can learn both; but as
long as it does not tell them apart, each gradient undoes the other. Only linear layers are tuned, by every method; the
rows of items, markers and answers are trained by AdamW. No null space, so that only the subspaces differ. `one
subspace` has the state of `gems`.

Each method runs at three rates with seed 0, and at the one with the lowest joint validation loss with the other seeds.
The conflict ρ is the mean over layers and over probes in the second half of the training (0 aligned, 1 orthogonal, 2
opposed).
"""

from __future__ import annotations

import statistics
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Any

import torch
import torch.nn.functional as F
import typer
from rich.console import Console
from rich.table import Table
from torch import Tensor, nn

from gems import GEMS, measure_conflict, plain_gradients
from index.sequence.language_model import load_language_model
from training.cli.common.command import run_command
from training.cli.common.numbers import finite
from training.cli.common.paths import output_file
from training.cli.common.quiet import quiet_libraries
from training.data.dataset import DataSet
from training.inputs import InputError
from training.loop.schedule import rate_factor
from training.outputs import write_json
from training.settings import MOST_THREADS

TASKS = ("plain", "permuted")
ITEMS, LENGTH, BATCH = 500, 10, 32
POPULAR = 0.75  # share of the events
PROBES = 8  # in the course of a training

# method → settings of GEMS; None is AdamW
METHODS: dict[str, dict[str, Any] | None] = {
    "full": None,
    "one subspace": {"tasks": (), "rank_share": 0.5},
    "gems, learned gate": {"tasks": TASKS, "rank_share": 0.25, "gate": "hypergradient"},
    "gems, two passes, learned gate": {
        "tasks": TASKS,
        "rank_share": 0.25,
        "joint": False,
        "gate": "hypergradient",
    },
    "gems, two passes": {"tasks": TASKS, "rank_share": 0.25, "joint": False},
    "gems, two passes, prior gate": {"tasks": TASKS, "rank_share": 0.25, "joint": False, "gate": "prior"},
}
RATES = {name: (1e-3, 2e-3, 4e-3) if name == "full" else (2e-3, 4e-3, 8e-3) for name in METHODS}


@dataclass(frozen=True)
class Windows:
    """Histories, and 1 where the next item is no popular one, else 0: int64 [N, LENGTH] and [N]."""

    histories: Tensor
    following: Tensor


def windows_of(data: Path) -> tuple[Windows, Windows]:
    """Return the windows of four fifths of the people, and of the others. Raises `InputError` if there are few."""
    users = DataSet.load(data).users
    counts = Counter(event.item for user in users for event in user.events)
    popular = counts.most_common(ITEMS)
    row = {item: k for k, (item, _) in enumerate(popular)}
    events = torch.tensor([count for _, count in popular])
    rare = (events.cumsum(0) > POPULAR * events.sum()).long()
    parts: tuple[list[list[int]], list[list[int]]] = ([], [])
    for k, user in enumerate(users):
        items = [row[event.item] for event in user.events if event.item in row]
        parts[k % 5 == 0].extend(items[i : i + LENGTH + 1] for i in range(len(items) - LENGTH))
    if min(map(len, parts)) < BATCH:
        raise InputError(f"{data} has too few histories of more than {LENGTH} popular items")
    return tuple(Windows(t[:, :-1], rare[t[:, -1]]) for t in map(torch.tensor, parts))  # type: ignore[return-value]


class Predictor(nn.Module):
    """A language model's blocks that read a history of items and the marker of a task, and score the answers."""

    def __init__(self, backbone: Path) -> None:
        super().__init__()
        self.blocks = load_language_model(backbone, local=True).base_model
        linear = {id(m.weight) for m in self.blocks.modules() if isinstance(m, nn.Linear)}
        for parameter in self.blocks.parameters():
            parameter.requires_grad_(id(parameter) in linear)
        table = self.blocks.get_input_embeddings().weight
        self.rows = nn.ParameterList(
            torch.randn(count, table.shape[1]) * table.std() for count in (ITEMS, len(TASKS), 1, 2)
        )

    def forward(self, histories: Tensor, tasks: Tensor) -> Tensor:
        """Return scores [B, 2]. histories: [B, LENGTH]; tasks: [B]."""
        items, markers, question, answers = self.rows
        last = question.expand(len(tasks), 1, -1)
        read = torch.cat([markers[tasks].unsqueeze(1), items[histories], last], dim=1)
        hidden: Tensor = self.blocks(inputs_embeds=read, use_cache=False).last_hidden_state[:, -1]
        scores: Tensor = hidden @ answers.T
        return scores


class Problem:
    """Batches and losses. share: share of the examples that are of the permuted task."""

    def __init__(self, train: Windows, held_out: Windows, share: float) -> None:
        self.train, self.held_out = train, held_out
        self.shares = {"plain": 1 - share, "permuted": share}

    def losses(self, model: Predictor, windows: Windows, chosen: Tensor, tasks: Tensor) -> dict[str, Tensor]:
        """Return the mean loss of each task that occurs. chosen: rows of the windows, [B]; tasks: [B]."""
        scores = model(windows.histories[chosen], tasks)
        losses = F.cross_entropy(scores, windows.following[chosen] ^ tasks, reduction="none")
        return {name: losses[tasks == k].mean() for k, name in enumerate(TASKS) if bool((tasks == k).any())}

    def draw(self, generator: torch.Generator) -> tuple[Tensor, Tensor]:
        """Draw the rows and tasks of a batch."""
        chosen = torch.randint(0, len(self.train.following), (BATCH,), generator=generator)
        return chosen, (torch.rand(BATCH, generator=generator) < self.shares["permuted"]).long()

    def validation(self, model: Predictor) -> dict[str, float]:
        """Return the loss of each task on the same held-out histories."""
        chosen = torch.linspace(0, len(self.held_out.following) - 1, 2000).long()
        with torch.no_grad():
            model.eval()
            found = {
                name: self.losses(model, self.held_out, chosen, torch.full_like(chosen, k))[name].item()
                for k, name in enumerate(TASKS)
            }
            model.train()
        return found

    def conflict(self, model: Predictor, generator: torch.Generator) -> float:
        """Return the mean ρ of the layers, where both tasks have the same histories."""
        chosen = self.draw(generator)[0]
        both = torch.cat([chosen, chosen])
        tasks = torch.arange(2).repeat_interleave(len(chosen))
        with plain_gradients():
            found = measure_conflict(
                self.losses(model, self.train, both, tasks),
                {name: p for name, p in model.blocks.named_parameters() if p.requires_grad},
            )
        return statistics.fmean(found.values())


def train(
    problem: Problem, backbone: Path, settings: Mapping[str, Any] | None, rate: float, steps: int, seed: int
) -> dict[str, Any]:
    """Train a model; return its validation losses, conflict and gate."""
    torch.manual_seed(seed)
    model = Predictor(backbone)
    rows = list(model.rows)
    optimizer: torch.optim.Optimizer
    if settings is None:
        optimizer = torch.optim.AdamW(
            [p for p in model.parameters() if p.requires_grad], lr=rate, betas=(0.9, 0.98), weight_decay=0.0
        )
    else:
        own = dict(settings)
        tasks = own.pop("tasks")
        optimizer = GEMS(model, tasks, lr=rate, plain=rows, refresh_every=50, clip=1.0, seed=seed, **own)
    generator, probes = torch.Generator().manual_seed(seed), torch.Generator().manual_seed(1)
    conflicts = []
    for step in range(steps):
        if step % (steps // PROBES) == 0:
            conflicts.append(problem.conflict(model, probes))
        losses = problem.losses(model, problem.train, *problem.draw(generator))
        weighted = {name: problem.shares[name] * loss for name, loss in losses.items()}
        for group in optimizer.param_groups:
            group["lr"] = rate * rate_factor((step + 1) / steps, 0.1, 0.05)
        if isinstance(optimizer, GEMS) and optimizer.tasks:
            values = {name: loss.detach() for name, loss in losses.items()}
            optimizer.backward(weighted, values=values, samples=problem.shares)
        else:
            torch.stack(list(weighted.values())).sum().backward()  # type: ignore[no-untyped-call]
            if settings is None:
                torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        optimizer.step()
        optimizer.zero_grad()
    gate = optimizer.figures().get("gate.permuted") if isinstance(optimizer, GEMS) else None
    found = problem.validation(model)
    joint = sum(problem.shares[name] * loss for name, loss in found.items())
    late = statistics.fmean(conflicts[PROBES // 2 :])
    return {"rate": rate, "seed": seed, "joint": joint, "conflict": late, "gate": gate} | found


def main(
    data: Annotated[Path, typer.Option(help="data set folder")],
    backbone: Annotated[Path, typer.Option(help="small language model (bench.tiny_lm)")],
    share: Annotated[
        float, typer.Option(min=0.001, max=0.999, callback=finite, help="share of the permuted task")
    ] = 0.5,
    steps: Annotated[int, typer.Option(min=PROBES, max=100_000)] = 600,
    seeds: Annotated[int, typer.Option(min=1, max=100, help="trainings at the best rate")] = 3,
    threads: Annotated[int, typer.Option(min=1, max=MOST_THREADS)] = 1,
    json_file: Annotated[
        Path | None, typer.Option("--json", help="write the figures to this file", callback=output_file)
    ] = None,
) -> None:
    quiet_libraries()
    torch.set_num_threads(threads)
    console = Console()
    problem = Problem(*windows_of(data), share)
    if not backbone.is_dir():
        raise InputError(f"there is no folder {backbone}; make a small language model with bench.tiny_lm")
    runs: dict[str, list[dict[str, Any]]] = {}
    for name, settings in METHODS.items():
        tried = []
        for rate in RATES[name]:
            with console.status(f"{name}, rate {rate}"):
                tried.append(train(problem, backbone, settings, rate, steps, 0))
        best = min(tried, key=lambda run: run["joint"])
        runs[name] = [best]
        for seed in range(1, seeds):
            with console.status(f"{name}, seed {seed}"):
                runs[name].append(train(problem, backbone, settings, best["rate"], steps, seed))
        console.print(
            f"{name}: " + ", ".join(f"{run['rate']:g}: {run['joint']:.3f}" for run in tried), markup=False
        )
        if json_file is not None:
            write_json(json_file, {"share": share, "steps": steps, "runs": runs})
    table = Table("method", "rate", *TASKS, "joint", "ρ", "gate of permuted")
    for name, found in runs.items():

        def mean(key: str, found: Sequence[Mapping[str, Any]] = found) -> float:
            return statistics.fmean(run[key] for run in found)

        gate = "" if found[0]["gate"] is None else f"{mean('gate'):.2f}"
        figures = [f"{mean(key):.3f}" for key in (*TASKS, "joint", "conflict")]
        table.add_row(name, f"{found[0]['rate']:g}", *figures, gate)
    console.print(table)


if __name__ == "__main__":
    run_command(main, "bench.conflict")
