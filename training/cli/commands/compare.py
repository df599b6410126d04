"""`gems compare`: the model, baselines and floors in one table."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer
from rich.console import Console

from training.cli.common.numbers import Seed
from training.cli.common.paths import JsonFile
from training.outputs import write_json
from training.settings import MOST


def compare_command(
    runs: Annotated[
        list[Path],
        typer.Argument(
            help="folders of 'gems baseline', or files of 'gems evaluate --ranks'; the others are compared with "
            "the first"
        ),
    ],
    data: Annotated[Path | None, typer.Option(help="folder of the data set, for the floors")] = None,
    json_file: JsonFile = None,
    cold: Annotated[int, typer.Option(min=1, max=MOST, help="users with at most N events are cold")] = 5,
    seed: Seed = 0,
) -> None:
    """Compare systems on the cases that all of them ranked. Runs of one system with several seeds count as one."""
    # Slow imports, not for --help.
    from training.data.dataset import DataSet
    from training.evaluation.case_ranks import CaseRanks
    from training.evaluation.comparison.compare import compare, floors_of
    from training.evaluation.comparison.table import markdown

    found = [CaseRanks.load(path) for path in runs]
    if data is not None:
        found += floors_of(DataSet.load(data), found)
    result = compare(found, cold=cold, seed=seed)
    Console().print(markdown(result), markup=False, highlight=False, soft_wrap=True)
    if json_file is not None:
        write_json(json_file, result)
