"""`gems evaluate`: ranking of both tasks, and of its floors."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Literal

import typer
from rich.console import Console

from training.cli.common.device import DeviceOption
from training.cli.common.numbers import BeamWidth, Seed, Threads
from training.cli.common.paths import BundlePath, JsonFile, output_file
from training.cli.common.protocol import ExcludeHistory
from training.cli.common.quiet import quiet_libraries
from training.settings import MOST


def evaluate_command(
    bundle: BundlePath,
    data: Annotated[Path, typer.Option(help="folder of the data set it was trained on")],
    json_file: JsonFile = None,
    ranks: Annotated[
        Path | None,
        typer.Option(
            help="write the rank of every case to this .npz file, for 'gems compare'", callback=output_file
        ),
    ] = None,
    system: Annotated[str, typer.Option(help="with --ranks: name of the model in comparisons")] = "model",
    split: Annotated[str, typer.Option(help="'test' or 'validation'")] = "test",
    cases: Annotated[
        int | None, typer.Option(min=1, max=MOST, help="at most this many cases, drawn by --seed")
    ] = None,
    beam_width: BeamWidth = 50,
    ranking: Annotated[
        Literal["pool", "beam"] | None,
        typer.Option(
            help="'pool' as a server ranks, or 'beam' for the model alone; else what the bundle has"
        ),
    ] = None,
    exclude_history: ExcludeHistory = None,
    sampled_negatives: Annotated[
        int | None,
        typer.Option(
            min=1, max=MOST, help="rank the target among N sampled items only, as papers do with 99"
        ),
    ] = None,
    seed: Seed = 0,
    threads: Threads = None,
    device: DeviceOption = "auto",
) -> None:
    """Evaluate a bundle through the engine that serves it."""
    from training.evaluation.evaluate import evaluate, save_evaluation  # slow imports, not for --help
    from training.evaluation.table import print_evaluation

    quiet_libraries()

    console = Console()
    result = evaluate(
        bundle,
        data,
        split=split,
        max_cases=cases,
        beam_width=beam_width,
        exclude_history=exclude_history,
        sampled_negatives=sampled_negatives,
        seed=seed,
        threads=threads,
        device=device,
        console=console,
        ranks_file=ranks,
        system=system,
        ranking=ranking,
    )
    print_evaluation(result, console)
    if json_file:
        save_evaluation(result, json_file)
