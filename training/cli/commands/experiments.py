"""`gems sweep` and `gems reproduce`: many trainings, one table of all."""

from __future__ import annotations

import os
from pathlib import Path
from typing import Annotated

import typer
from rich.console import Console

from training.cli.common.device import DeviceOption
from training.cli.common.numbers import BeamWidth, Threads, finite, whole_numbers
from training.cli.common.paths import output_folder
from training.cli.common.protocol import ExcludeHistory
from training.cli.common.quiet import quiet_libraries
from training.outputs import write_json, write_text
from training.settings import CLOCK_HELP, MOST, SEEDS, Clock


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


def reproduce_command(
    data: Annotated[
        str,
        typer.Option(
            help="'movielens', 'beauty' (with --source), or folder of a data set (./NAME if so called)"
        ),
    ],
    out: Annotated[
        Path,
        typer.Option(
            help="folder of all runs and tables; a call that was stopped goes on there",
            callback=output_folder,
        ),
    ],
    budget: Annotated[
        float, typer.Option(min=1e-3, max=1e6, callback=finite, help="minutes of each training")
    ] = 10.0,
    clock: Annotated[Clock, typer.Option(help=CLOCK_HELP)] = "wall",
    systems: Annotated[
        str | None, typer.Option(help="names, comma-separated, of the systems (default: all of the table)")
    ] = None,
    seeds: Annotated[str, typer.Option(help="seeds of the trainings, comma-separated")] = "0",
    tuning: Annotated[
        int,
        typer.Option(min=1, max=1000, help="settings of each system that are tried on validation cases"),
    ] = 1,
    tuning_share: Annotated[
        float, typer.Option(min=0.01, max=1, callback=finite, help="minutes of a try, as a share of --budget")
    ] = 0.25,
    cases: Annotated[
        int | None, typer.Option(min=1, max=MOST, help="test cases, drawn once (default: all)")
    ] = None,
    validation_cases: Annotated[
        int, typer.Option(min=1, max=MOST, help="validation cases on which settings are chosen, drawn once")
    ] = 1000,
    negatives: Annotated[
        int, typer.Option(min=1, max=MOST, help="items of the sampled ranking besides the target")
    ] = 99,
    exclude_history: ExcludeHistory = None,
    beam_width: BeamWidth = 50,
    table: Annotated[
        Path | None,
        typer.Option(
            help="YAML file with systems of your own, in place of the program's (docs/reproduce.md)"
        ),
    ] = None,
    source: Annotated[Path | None, typer.Option(help="'beauty': folder with its normalised files")] = None,
    threads: Threads = None,
    device: DeviceOption = "auto",
) -> None:
    """Train every system for the same time, and write OUT/tables.json, OUT/tables.md and OUT/report.html.

    Trainings that are done are kept, those that were stopped go on, and those that failed are tried again. A system
    that fails does not end the others: it is shown with its reason, and the exit code is 1.
    """
    from training.data.dataset import DataSet  # slow imports, not for --help
    from training.data.splits import leave_one_out
    from training.evaluation.candidates import excludes_history
    from training.reproduce.data import check_source, data_folder
    from training.reproduce.job import Protocol
    from training.reproduce.markdown import markdown
    from training.reproduce.page import render
    from training.reproduce.run import Plan, run_all
    from training.reproduce.systems import check, choose, load_systems
    from training.reproduce.tables import tables

    quiet_libraries()
    console = Console()
    names = None if systems is None else [name.strip() for name in systems.split(",") if name.strip()]
    check_source(data, source)
    chosen = choose(load_systems(table), names)
    check(chosen, tuning)
    folder = data_folder(data, source, out / "data")
    dataset = DataSet.load(folder)
    plan = Plan(
        systems=chosen,
        data=folder,
        out=out,
        budget=budget,
        clock=clock,
        seeds=whole_numbers(seeds, least=0, most=SEEDS),
        tuning=tuning,
        tuning_share=tuning_share,
        threads=threads or os.cpu_count() or 1,
        device=device,
        protocol=Protocol(
            cases=cases,
            validation_cases=validation_cases,
            beam_width=beam_width,
            negatives=negatives,
            exclude_history=excludes_history(exclude_history, leave_one_out(dataset).validation),
        ),
    )
    runs = run_all(plan, console)
    with console.status("putting the systems into tables"):
        found = tables(plan, runs, dataset.info)
    write_json(out / "tables.json", found)
    write_text(out / "tables.md", markdown(found))
    write_text(out / "report.html", render(found))
    console.print(markdown(found), markup=False, highlight=False, soft_wrap=True)
    console.print(f"report: {out / 'report.html'}", markup=False, highlight=False, soft_wrap=True)
    if found["failed"]:
        raise typer.Exit(1)
