"""`python -m bench.decode_vllm --json F`: the vLLM engine against the torch engine, in the environment of
`make test-vllm`.

Both in one process, in turn, on the same prompts, each prompt once (vLLM keeps those that it has seen). Same backbone,
identifiers, precision and normalisation as `bench.decode`, whose figures are of another environment: what the two
tables share is the torch engine.
"""

from __future__ import annotations

import json
import tempfile
from itertools import count
from pathlib import Path
from typing import Annotated, Any

import torch
import typer
from rich.console import Console
from rich.table import Table

from bench.clock import in_turn
from bench.decode import ITEMS, Dtype
from bench.untrained import publish_untrained
from index.bundle import Bundle
from server.engine.contract import Engine, RankRequest
from server.engine.torch_engine import EngineOptions, TorchEngine
from server.engine.vllm_engine import VllmEngine
from training.cli.quiet import quiet_libraries


def prompt(bundle: Bundle, P: int, seed: int) -> list[int]:
    """Text tokens."""
    generator = torch.Generator().manual_seed(P + 100_000 * seed)
    ids: list[int] = torch.randint(0, bundle.vocabulary.first_added, (P,), generator=generator).tolist()
    return ids


def measure(bundle: Bundle, engine: Engine, vllm: Engine, P: int, W: int, repeats: int) -> dict[str, Any]:
    """One request of P tokens and W beams, by each engine."""
    ours, theirs = count(1000 * W), count(1000 * W)

    def rank(engine: Engine, seeds: count[int]) -> list[int]:
        return engine.rank([RankRequest(prompt(bundle, P, next(seeds)), W, W)])[0].items

    engine_ms, vllm_ms = in_turn(lambda: rank(engine, ours), lambda: rank(vllm, theirs), repeats=repeats)
    identical = rank(engine, ours) == rank(vllm, theirs)
    return {
        "P": P,
        "W": W,
        "engine_ms": engine_ms,
        "vllm_ms": vllm_ms,
        "vllm_over_engine": vllm_ms / engine_ms,
        "identical": identical,
    }


def main(
    json_file: Annotated[Path | None, typer.Option("--json", help="write the figures to this file")] = None,
    backbone: Annotated[str, typer.Option(help="as in 'gems train'")] = "smollm2-135m",
    layers: Annotated[int | None, typer.Option(help="keep the first N layers")] = None,
    prompts: Annotated[str, typer.Option(help="prompt lengths P")] = "100,300,1000",
    widths: Annotated[str, typer.Option(help="beam widths W")] = "10,20,50",
    repeats: Annotated[int, typer.Option(help="timed runs of each")] = 5,
    threads: Annotated[int, typer.Option(help="CPU threads")] = 2,
    dtype: Annotated[Dtype, typer.Option(help="precision of both")] = Dtype.bfloat16,
) -> None:
    """Time one request for every prompt length and beam width."""
    torch.set_num_threads(threads)
    quiet_libraries()
    console = Console()
    with tempfile.TemporaryDirectory() as folder:
        bundle = Bundle.open(
            publish_untrained(
                Path(folder) / "bundle",
                items=ITEMS,
                backbone=backbone,
                layers=layers,
                normalisation="vocabulary",
            )
        )
        engine = TorchEngine.open(bundle, EngineOptions(precision=dtype.value))
        vllm = VllmEngine.open(bundle, dtype=dtype.value)
        cases = [
            measure(bundle, engine, vllm, P, W, repeats)
            for P in map(int, prompts.split(","))
            for W in map(int, widths.split(","))
        ]
        vllm.close()
    report = Table(title=f"{backbone}, {ITEMS} items, {threads} threads, {dtype.value}")
    for column in cases[0]:
        report.add_column(column, justify="right")
    for case in cases:
        report.add_row(*(f"{v:.2f}" if isinstance(v, float) else str(v) for v in case.values()))
    console.print(report)
    if json_file:
        json_file.parent.mkdir(parents=True, exist_ok=True)
        record = {
            "backbone": backbone, "layers": layers, "items": ITEMS, "threads": threads, "dtype": dtype.value,
            "cases": cases,
        }  # fmt: skip
        json_file.write_text(json.dumps(record, indent=2) + "\n", "utf-8")


if __name__ == "__main__":
    typer.run(main)
