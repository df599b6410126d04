"""`python -m bench.train --json F`: time and memory of a training step, by method.

Every method runs in its own process, with the same SmolLM2-135M (all layers unless --layers), the same random batches
of two tasks and the same identifiers, in float32. `full` runs one backward pass for each task, as GEMS must;
`full-joint` runs the usual single pass over their sum. Subspaces have rank n/8, half of it for each task; LoRA has rank
32. Times are medians, separately for steps with and without a refresh of the bases. Peak bytes are the growth of the
process above the loaded model (VmHWM, Linux).
"""

from __future__ import annotations

import json
import os
import re
import statistics
import subprocess
import sys
import time
from pathlib import Path
from typing import Annotated, Any

import numpy as np
import torch
import typer
from rich.console import Console
from rich.table import Table

from index.identifiers.identifiers import Identifiers
from index.sequence.events import Task
from training.cli.common.command import run_command
from training.cli.common.paths import output_file
from training.cli.common.quiet import quiet_libraries
from training.config import TrainConfig
from training.loop.losses import item_losses
from training.loop.parts import Part
from training.methods.method import Method
from training.methods.registry import make_method
from training.model.backbones import load_backbone
from training.model.extension import extend_backbone
from training.outputs import write_json
from training.settings import MOST, MOST_THREADS

SETTINGS: dict[str, dict[str, Any]] = {
    "full": {"method": "full"},
    "full-joint": {"method": "full"},
    "lora": {"method": "lora", "lora.rank": 32},
    "subspace": {"method": "subspace", "gems.rank_share": 0.125},
    "gems-learned-gate": {
        "method": "gems",
        "gems.rank_share": 0.125,
        "gems.joint": False,
        "gems.gate": "hypergradient",
    },
    "gems-two-passes": {"method": "gems", "gems.rank_share": 0.125, "gems.joint": False},
    "gems": {"method": "gems", "gems.rank_share": 0.125},
    "gems-shared-bases": {"method": "gems", "gems.rank_share": 0.125, "gems.share_bases": True},
}
CODEBOOKS = (256, 256, 256)
ITEMS = 10_000


def batch(vocabulary_codes: np.ndarray, first_code: list[int], rows: int, tokens: int, seed: int) -> Part:
    """Return `rows` random sequences of `tokens` tokens.

    Items have three codes, each item follows three text tokens, and the tasks alternate within a sequence.
    """
    rng = np.random.default_rng(seed)
    ids = rng.integers(100, 40_000, (rows, tokens))
    level = np.full((rows, tokens), -1, np.int8)
    task = np.zeros((rows, tokens), np.int8)
    for row in range(rows):
        for k, start in enumerate(range(3, tokens - 3, 6)):
            item = vocabulary_codes[rng.integers(len(vocabulary_codes))]
            ids[row, start : start + 3] = item + first_code[:3]
            level[row, start : start + 3] = (0, 1, 2)
            task[row, start : start + 3] = k % 2
    return Part(
        torch.from_numpy(ids), torch.from_numpy(level), torch.from_numpy(task), torch.full(ids.shape, -1)
    )


def step_once(name: str, method: Method, losses: dict[Task, torch.Tensor]) -> dict[str, Any]:
    """Run backward and update of one step; return the figures of the method."""
    shares = dict.fromkeys(losses, 0.5)
    if name == "full":
        for left, (task, loss) in zip((1, 0), losses.items(), strict=True):
            (shares[task] * loss).backward(retain_graph=left > 0)  # type: ignore[no-untyped-call]
    else:
        method.backward(losses, shares)
    return method.step(1e-5)


def measure(
    name: str, layers: int | None, rows: int, tokens: int, steps: int, threads: int
) -> dict[str, Any]:
    """Return the figures of one method. It needs its own process, because the peak of memory is one per process."""
    torch.set_num_threads(threads)
    common = {"backbone.layers": layers, "knowledge.null_space": False, "gems.refresh_every": 1000}
    config = TrainConfig.combined(common, SETTINGS[name])
    backbone = load_backbone(config, [])
    codes = np.random.default_rng(0).integers(0, 256, (ITEMS, 3)).astype(np.int32)
    identifiers = Identifiers("semantic", codes, CODEBOOKS)
    vocabulary = extend_backbone(
        backbone, identifiers, [f"title {k}" for k in range(ITEMS)], np.zeros((ITEMS, 384), np.float32)
    )
    method = make_method(backbone.model, config, vocabulary.first_added)
    first_code = [int(code) for code in vocabulary.first_code]
    loaded = _reset_peak()
    times: dict[bool, list[float]] = {False: [], True: []}
    for step in range(config.gems.stagger + steps):
        part = batch(codes, first_code, rows, tokens, step)
        begin = time.perf_counter()
        sums = item_losses(backbone.model, vocabulary, part, "level", method.rows)
        count = rows * len(range(3, tokens - 3, 6)) / 2
        figures = step_once(name, method, {task: total / count for task, total in sums.items()})
        times["subspaces" in figures].append(time.perf_counter() - begin)
    plain = times[False][2:] if times[True] == [] else times[False]
    result = {"step_seconds": statistics.median(plain), **method.costs(), "peak_bytes": _peak() - loaded}
    if times[True]:
        result["refreshing_step_seconds"] = statistics.median(times[True][1:])
    return result


def _reset_peak() -> int:
    """Reset the peak of memory; return the present bytes."""
    Path("/proc/self/clear_refs").write_text("5")
    return _peak()


def _peak() -> int:
    found = re.search(r"VmHWM:\s+(\d+) kB", Path("/proc/self/status").read_text())
    assert found is not None
    return 1024 * int(found.group(1))


def main(
    json_file: Annotated[
        Path, typer.Option("--json", help="write the figures to this file", callback=output_file)
    ],
    layers: Annotated[int | None, typer.Option(min=1, max=1000, help="first N layers (default: all)")] = None,
    rows: Annotated[int, typer.Option(min=1, max=MOST, help="sequences of a step")] = 4,
    tokens: Annotated[int, typer.Option(min=2, max=MOST, help="tokens of a sequence")] = 128,
    steps: Annotated[
        int, typer.Option(min=1, max=MOST, help="timed steps, after those in which subspaces start")
    ] = 5,
    threads: Annotated[int, typer.Option(min=1, max=MOST_THREADS, help="CPU threads")] = os.cpu_count() or 1,
    only: Annotated[str | None, typer.Option(help="methods, comma-separated")] = None,
    worker: Annotated[str | None, typer.Option(hidden=True)] = None,
) -> None:
    quiet_libraries()
    if worker is not None:
        write_json(json_file, measure(worker, layers, rows, tokens, steps, threads))
        return
    console = Console()
    names = only.split(",") if only else list(SETTINGS)
    shape = {"rows": rows, "tokens": tokens, "layers": layers, "steps": steps, "threads": threads}
    methods: dict[str, Any] = {}
    draft = json_file.with_suffix(".part")
    for name in names:
        options = [f"--{key}={value}" for key, value in shape.items() if value is not None]
        subprocess.run(
            [sys.executable, "-m", "bench.train", f"--json={draft}", f"--worker={name}", *options], check=True
        )
        methods[name] = json.loads(draft.read_text("utf-8"))
        draft.unlink()
        console.print(name, methods[name])
    full = methods.get("full")
    for figures in methods.values():
        figures["held_bytes"] = figures["state_bytes"] + figures["gradient_bytes"]
        if full:
            held = full["state_bytes"] + full["gradient_bytes"]
            figures["step_to_full"] = figures["step_seconds"] / full["step_seconds"]
            figures["held_to_full"] = figures["held_bytes"] / held
    result = {"model": "SmolLM2-135M", "shape": shape, "torch": torch.__version__, "methods": methods}
    write_json(json_file, result)
    table = Table("method", "s / step", "÷ full", "state MB", "gradient MB", "held ÷ full", "peak MB")
    for name, f in methods.items():
        table.add_row(
            name, f"{f['step_seconds']:.2f}", f"{f.get('step_to_full', 0):.2f}", f"{f['state_bytes'] / 1e6:.0f}",
            f"{f['gradient_bytes'] / 1e6:.0f}", f"{f.get('held_to_full', 0):.2f}", f"{f['peak_bytes'] / 1e6:.0f}",
        )  # fmt: skip
    console.print(table)


if __name__ == "__main__":
    run_command(main, "bench.train")
