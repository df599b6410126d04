"""`gems sweep`: several settings and seeds, one table."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer
from rich.console import Console

from training.cli.common.paths import output_folder
from training.cli.common.quiet import quiet_libraries
from training.outputs import write_json, write_text


def sweep_command(
    spec: Annotated[Path, typer.Argument(help="YAML file: settings, variants, seeds (see docs/training.md)")],
    data: Annotated[Path, typer.Option(help="folder of a data set")],
    out: Annotated[
        Path,
        typer.Option(
            help="folder of the sweep; a sweep that was stopped goes on there", callback=output_folder
        ),
    ],
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
    write_json(out / "summary.json", summary)
    write_text(out / "summary.md", markdown(summary))
    console.print(markdown(summary), markup=False, highlight=False, soft_wrap=True)
    missing = len(plan.seeds) * len(plan.variants) - len(results)
    if missing:
        console.print(f"{missing} runs belong to other processes; call again when they are done")
