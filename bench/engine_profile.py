"""`python -m bench.engine_profile --json F`: the engine's time for one request, by stage and by kind of operation.

The engine itself measures the stages. torch's profiler adds up the time of operations by kind on the main thread. The
rest of the wall time is Python: the interpreter between operations, numpy, the trie. The profiler itself costs time, so
only the shares count.
"""

from __future__ import annotations

import statistics
import tempfile
import time
from pathlib import Path
from typing import Annotated, Any

import torch
import typer
from rich.console import Console
from rich.table import Table
from torch.profiler import ProfilerActivity, profile

from bench.decode import ITEMS
from bench.untrained import publish_untrained
from index.bundle.bundle import Bundle
from server.engine.contract import RankRequest
from server.engine.options import EngineOptions, Precision
from server.engine.torch_backend.engine import TorchEngine
from training.cli.common.command import run_command
from training.cli.common.numbers import whole_numbers
from training.cli.common.paths import JsonFile
from training.cli.common.quiet import quiet_libraries
from training.outputs import write_json
from training.settings import MOST, MOST_BEAMS, MOST_THREADS

KINDS = {
    "linear layers": ("mkldnn::_linear_pointwise", "onednn::qlinear_pointwise", "aten::addmm", "aten::mm"),
    "attention": (
        "aten::bmm",
        "aten::_softmax",
        "aten::_scaled_dot_product_flash_attention_for_cpu",
    ),
}


def operations(engine: TorchEngine, requests: list[RankRequest]) -> dict[str, float]:
    """Return milliseconds per request, by kind of operation."""
    with profile(activities=[ProfilerActivity.CPU]) as profiler:
        began = time.perf_counter()
        for request in requests:
            engine.rank([request])
        wall = 1000 * (time.perf_counter() - began)
    found = dict.fromkeys([*KINDS, "other operations"], 0.0)
    for event in profiler.key_averages():
        kind = next((kind for kind, names in KINDS.items() if event.key in names), "other operations")
        found[kind] += event.self_cpu_time_total / 1000
    found["Python, trie"] = wall - sum(found.values())
    return {kind: value / len(requests) for kind, value in found.items()}


def measure(engine: TorchEngine, first_added: int, P: int, W: int, repeats: int) -> dict[str, Any]:
    """Return figures of requests with P prompt tokens and W beams.

    first_added: size of the vocabulary of text tokens.
    """
    generator = torch.Generator().manual_seed(P)
    requests = [
        RankRequest(torch.randint(0, first_added, (P,), generator=generator).tolist(), W, W)
        for _ in range(repeats + 1)
    ]
    engine.rank(requests[:1])  # warm-up
    began = time.perf_counter()
    seconds = [engine.rank([request])[0].seconds for request in requests[1:]]
    total = 1000 * (time.perf_counter() - began) / repeats
    stages = {stage: 1000 * statistics.mean(each[stage] for each in seconds) for stage in seconds[0]}
    return {
        "P": P,
        "W": W,
        "ms": total,
        "stages_ms": stages,
        "operations_ms": operations(engine, requests[1:]),
    }


def main(
    json_file: JsonFile = None,
    backbone: Annotated[str, typer.Option(help="as in 'gems train'")] = "smollm2-135m",
    layers: Annotated[int | None, typer.Option(min=1, max=1000, help="keep the first N layers")] = None,
    prompts: Annotated[str, typer.Option(help="prompt lengths P")] = "100,300",
    widths: Annotated[str, typer.Option(help="beam widths W")] = "10,50",
    repeats: Annotated[int, typer.Option(min=1, max=MOST)] = 5,
    threads: Annotated[int, typer.Option(min=1, max=MOST_THREADS, help="CPU threads")] = 2,
    precision: Annotated[Precision, typer.Option(help="of the engine")] = "bfloat16",
) -> None:
    prompt_lengths, beam_widths = whole_numbers(prompts), whole_numbers(widths, most=MOST_BEAMS)
    torch.set_num_threads(threads)
    quiet_libraries()
    with tempfile.TemporaryDirectory() as folder:
        path = publish_untrained(
            Path(folder) / "bundle", items=ITEMS, backbone=backbone, layers=layers, normalisation="level"
        )
        bundle = Bundle.open(path)
        engine = TorchEngine.open(bundle, EngineOptions(precision=precision))
        cases = [
            measure(engine, bundle.vocabulary.first_added, P, W, repeats)
            for P in prompt_lengths
            for W in beam_widths
        ]
    report = Table(title=f"{backbone}, {ITEMS} items, {threads} threads, {precision}: milliseconds a request")
    columns = ["P", "W", "ms", *cases[0]["stages_ms"], *cases[0]["operations_ms"]]
    for column in columns:
        report.add_column(column, justify="right")
    for case in cases:
        values = [case["ms"], *case["stages_ms"].values(), *case["operations_ms"].values()]
        report.add_row(str(case["P"]), str(case["W"]), *(f"{value:.1f}" for value in values))
    Console(width=140).print(report)
    if json_file:
        record = {"backbone": backbone, "precision": precision, "threads": threads, "cases": cases}
        write_json(json_file, record)


if __name__ == "__main__":
    run_command(main, "bench.engine_profile")
