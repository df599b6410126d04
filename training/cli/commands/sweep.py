"""`gems sweep`: several settings and seeds, one table."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Annotated

import typer
from rich.console import Console

from index.files import atomic_write
from training.cli.common.quiet import quiet_libraries


def sweep_command(
    spec: Annotated[Path, typer.Argument(help="YAML file: settings, variants, seeds (see docs/training.md)")],
    data: Annotated[Path, typer.Option(help="folder of a data set")],
    out: Annotated[Path, typer.Option(help="folder of the sweep; a sweep that was stopped goes on there")],
) -> None:
    """Train every variant with every seed, and write OUT/summary.json and OUT/summary.md.

    Runs that are done are kept, runs that were stopped go on. Several processes may work on one folder.
    """
    from training.sweep.run import run_variant  # slow imports, not for --help
    from training.sweep.spec import SweepSpec
    from training.sweep.table import markdown, summarise

    quiet_libraries()
    console = Console()
    plan = SweepSpec.load(spec)
    results = []
    for seed in plan.seeds:
        for variant in plan.variants:
            result = run_variant(plan, variant, seed, data, out, console)
            if result is not None:
                results.append(result)
    summary = summarise(results, plan.baseline)
    with atomic_write(out / "summary.json") as draft:
        draft.write_text(json.dumps(summary, indent=2) + "\n", "utf-8")
    with atomic_write(out / "summary.md") as draft:
        draft.write_text(markdown(summary), "utf-8")
    console.print(markdown(summary), markup=False, highlight=False, soft_wrap=True)
    missing = len(plan.seeds) * len(plan.variants) - len(results)
    if missing:
        console.print(f"{missing} runs belong to other processes; call again when they are done")
