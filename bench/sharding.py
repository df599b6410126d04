"""`python -m bench.sharding --json F`: bytes that a process sends in a step under FSDP2, of GEMS and of full AdamW.

With GEMS also the size of a checkpoint, which should not depend on the number of processes.

The model has the proportions of Qwen2.5-3B, sixteenth as wide, and random weights; its blocks and the rest are sharded
over gloo processes on the CPU. AdamW trains all weights. GEMS has bases of rank n/8, half of it for each of two tasks,
and leaves what is not linear frozen (`gems`), as on a pretrained backbone, or trains it by AdamW (`gems, all trained`).
A step sends the same bytes each time, more where a group of weights refreshes. All ten groups and ten steps without a
refresh are counted, once all bases are there, and weighted as in a cycle of 200 steps.
"""

from __future__ import annotations

import tempfile
from pathlib import Path
from typing import Annotated, Any

import torch
import torch.distributed as dist
import typer
from rich.console import Console
from rich.progress import track
from rich.table import Table
from torch.distributed.device_mesh import init_device_mesh
from torch.distributed.fsdp import fully_shard
from torch.multiprocessing.spawn import spawn
from transformers import Qwen2Config, Qwen2ForCausalLM

from bench.traffic import GRADIENTS, WEIGHTS, Traffic
from gems import GEMS, save_sharded, weights_of
from training.cli.common.command import run_command
from training.cli.common.paths import JsonFile
from training.cli.common.quiet import quiet_libraries
from training.outputs import write_json

RANK_SHARE, REFRESH_EVERY, STAGGER = 0.125, 200, 10
METHODS = ("adamw", "gems", "gems, all trained")
SHAPE = {
    "hidden_size": 128, "intermediate_size": 688, "num_hidden_layers": 4, "num_attention_heads": 16,
    "num_key_value_heads": 2, "vocab_size": 512, "tie_word_embeddings": True,
}  # fmt: skip
AIM = 0.35


def optimizer_of(method: str, model: Qwen2ForCausalLM) -> torch.optim.Optimizer:
    """Return the optimizer of a sharded model."""
    if method == "adamw":
        return torch.optim.AdamW(model.parameters(), lr=1e-4)
    plain: list[torch.nn.Parameter] | None = None if method == "gems, all trained" else []
    return GEMS(
        model, ["search", "recommendation"], lr=1e-4, rank_share=RANK_SHARE, refresh_every=2 * STAGGER,
        stagger=STAGGER, plain=plain,
    )  # fmt: skip


def sent_in_steps(rank: int, world: int, method: str, folder: str, steps: int) -> None:
    """Train as process `rank` of `world`, and write the bytes of each step to FOLDER/bytes.pt."""
    torch.set_num_threads(1)
    quiet_libraries()
    dist.init_process_group("gloo", init_method=f"file://{folder}/meeting", rank=rank, world_size=world)
    torch.manual_seed(0)
    model = Qwen2ForCausalLM(Qwen2Config(**SHAPE))
    if method == "gems":
        for name, parameter in model.named_parameters():
            parameter.requires_grad_(parameter.ndim == 2 and "embed" not in name)
    mesh = init_device_mesh("cpu", (world,))
    for module in [*model.model.layers, model]:
        fully_shard(module, mesh=mesh)
    optimizer = optimizer_of(method, model)
    rows = []
    for step in track(range(steps), method, disable=rank > 0):
        ids = torch.randint(0, SHAPE["vocab_size"], (4, 6))
        with Traffic() as traffic:
            logits = model(input_ids=ids, use_cache=False).logits[:, :-1]
            losses = torch.nn.functional.cross_entropy(
                logits.flatten(0, 1), ids[:, 1:].flatten(), reduction="none"
            ).view(4, -1)
            parts = {"search": losses[:2].mean() / 2 / world, "recommendation": losses[2:].mean() / 2 / world}
            if isinstance(optimizer, GEMS):
                optimizer.backward(parts)
            else:
                sum(parts.values(), torch.zeros(())).backward()  # type: ignore[no-untyped-call]
            optimizer.step()
            optimizer.zero_grad()
        refreshed = bool(optimizer.refreshed()) if isinstance(optimizer, GEMS) else False
        rows.append(traffic.sent | {"step": step, "refreshed": refreshed})
    if isinstance(optimizer, GEMS):
        saved = Path(folder) / "checkpoint"
        saved.mkdir(exist_ok=True)
        save_sharded(saved, {"model": weights_of(model), "optimizer": optimizer.state_dict()})
    if rank == 0:
        torch.save(rows, f"{folder}/bytes.pt")
    dist.destroy_process_group()


def figures_of(method: str, world: int) -> dict[str, Any]:
    """Return mean bytes a step, of all, of calm steps and of those with a refresh."""
    first = 0 if method == "adamw" else STAGGER
    count = 3 if method == "adamw" else 2 * STAGGER
    with tempfile.TemporaryDirectory() as folder:
        spawn(sent_in_steps, (world, method, folder, first + count), nprocs=world)  # type: ignore[no-untyped-call]
        rows = torch.load(Path(folder) / "bytes.pt")[first:]
        saved = sum(path.stat().st_size for path in Path(folder, "checkpoint").rglob("*") if path.is_file())
    calm, busy = ([row for row in rows if row["refreshed"] == refreshed] for refreshed in (False, True))

    def mean(kind: str, of: list[dict[str, Any]]) -> float:
        return float(sum(row[kind] for row in of)) / max(1, len(of))

    share = len(busy) / REFRESH_EVERY  # of the steps of a cycle
    return {
        "method": method,
        "processes": world,
        "checkpoint": saved,
        "gradients_calm": mean(GRADIENTS, calm),
        "gradients_refreshing": mean(GRADIENTS, busy),
        **{kind: (1 - share) * mean(kind, calm) + share * mean(kind, busy) for kind in (GRADIENTS, WEIGHTS)},
    }


def main(
    processes: Annotated[list[int], typer.Option(min=2, max=64, help="numbers of processes")] = [2, 4],  # noqa: B006
    json_file: JsonFile = None,
) -> None:
    console = Console()
    rows = []
    for world in processes:
        full = None
        for method in METHODS:
            row = figures_of(method, world)
            full = full or row
            row["share_of_gradients"] = row["gradients"] / full["gradients"]
            row["share_of_all"] = (row["gradients"] + row["weights"]) / (full["gradients"] + full["weights"])
            rows.append(row)
    table = Table(title=f"sent by a process in a step; aim: at most {AIM} of AdamW's gradients")
    for column in ("method", "processes", "gradients, MB", "of AdamW's", "weights, MB", "all, of AdamW's"):
        table.add_column(column, justify="right")
    for row in rows:
        numbers = (
            f"{row['gradients'] / 1e6:.3f}", f"{row['share_of_gradients']:.3f}", f"{row['weights'] / 1e6:.3f}",
            f"{row['share_of_all']:.3f}",
        )  # fmt: skip
        table.add_row(row["method"], str(row["processes"]), *numbers)
    console.print(table)
    if json_file:
        settings = {"shape": SHAPE, "rank_share": RANK_SHARE, "refresh_every": REFRESH_EVERY}
        write_json(json_file, settings | {"stagger": STAGGER, "rows": rows})


if __name__ == "__main__":
    run_command(main, "bench.sharding")
