"""`python -m bench.precision BUNDLE --data DIR`: the effect of lower precision on the rankings of a trained bundle.

Ranks test cases of a data set in float32, bfloat16 and int8. It compares each precision with float32: how often the
first item is the same, how many of the first ten items are the same, and how much the scores differ. It also reports
Hit@10 and seconds of each precision.
"""

from __future__ import annotations

import time
from collections.abc import Sequence
from pathlib import Path
from typing import Annotated, Any, get_args

import numpy as np
import torch
import typer
from rich.console import Console
from rich.table import Table

from index.bundle.bundle import Bundle
from index.sequence.events import Task
from server.engine.contract import Ranking
from server.engine.options import EngineOptions, Precision
from server.engine.torch_backend.engine import TorchEngine
from training.cli.common.command import run_command
from training.cli.common.numbers import BeamWidth
from training.cli.common.paths import JsonFile, input_bundle
from training.cli.common.quiet import quiet_libraries
from training.data.dataset import DataSet
from training.data.splits import leave_one_out
from training.errors import UserError
from training.evaluation.ranking import cases_of, draw_cases, rank_cases, target_ranks
from training.outputs import write_json
from training.settings import MOST, MOST_THREADS

TOP = 10


def agreement(rankings: Sequence[Ranking], exact: Sequence[Ranking]) -> dict[str, float]:
    """Compare rankings with exact ones; returns means over the cases.

    score_error is the mean absolute difference of scores in nats, over items that both rankings contain.
    """
    errors = []
    for ours, theirs in zip(rankings, exact, strict=True):
        known = dict(zip(theirs.items, theirs.scores, strict=True))
        errors += [abs(s - known[i]) for i, s in zip(ours.items, ours.scores, strict=True) if i in known]
    pairs = list(zip(rankings, exact, strict=True))
    return {
        "same_first": float(np.mean([a.items[0] == b.items[0] for a, b in pairs])),
        "overlap@10": float(np.mean([len({*a.items[:TOP]} & {*b.items[:TOP]}) / TOP for a, b in pairs])),
        "score_error": float(np.mean(errors)),
    }


def main(
    bundle_folder: Annotated[
        Path, typer.Argument(metavar="BUNDLE", help="a trained bundle, or its run", callback=input_bundle)
    ],
    data: Annotated[Path, typer.Option(help="the data set of its catalogue")],
    cases: Annotated[int, typer.Option(min=1, max=MOST, help="test cases, drawn by seed 0")] = 500,
    beam_width: BeamWidth = 50,
    limit: Annotated[int, typer.Option(min=1, max=MOST)] = 10,
    threads: Annotated[int, typer.Option(min=1, max=MOST_THREADS, help="CPU threads")] = 2,
    json_file: JsonFile = None,
) -> None:
    torch.set_num_threads(threads)
    quiet_libraries()
    console = Console()
    bundle = Bundle.open(bundle_folder)
    dataset = DataSet.load(data)
    if dataset.catalogue.item_ids != bundle.index.catalogue.item_ids:
        raise UserError(f"{bundle_folder} and {data} have different catalogues")
    chosen = draw_cases(leave_one_out(dataset).test, cases, 0)
    found: dict[str, dict[Task, list[Ranking]]] = {}
    rows: list[dict[str, Any]] = []
    for precision in get_args(Precision):
        engine = TorchEngine.open(bundle, EngineOptions(precision=precision))
        found[precision] = {}
        for task in Task:
            asked = cases_of(task, chosen)
            if not asked:
                continue
            began = time.perf_counter()
            with console.status(f"{precision}, {task.value}: {len(asked)} cases"):
                rankings = rank_cases(
                    engine, bundle.encoder, asked, task, beam_width=beam_width, limit=limit, batch=8
                )
            seconds = time.perf_counter() - began
            found[precision][task] = rankings
            ranks = target_ranks(rankings, asked)
            rows.append(
                {
                    "precision": precision,
                    "task": task.value,
                    "cases": len(asked),
                    **agreement(rankings, found["float32"][task]),
                    "hit@10": float(((ranks > 0) & (ranks <= TOP)).mean()),
                    "seconds": seconds,
                }
            )
    report = Table(title=f"{bundle.info.bundle_id}, {threads} threads")
    for column in rows[0]:
        report.add_column(column, justify="right")
    for row in rows:
        report.add_row(*(f"{v:.4f}" if isinstance(v, float) else str(v) for v in row.values()))
    console.print(report)
    if json_file:
        record = {"bundle": bundle.info.bundle_id, "beam_width": beam_width, "limit": limit, "rows": rows}
        write_json(json_file, record)


if __name__ == "__main__":
    run_command(main, "bench.precision")
