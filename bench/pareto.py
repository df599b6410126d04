"""`python -m bench.pareto SWEEP... --svg F`: task loss against drift of general knowledge, of the runs of sweeps.

Every finished run is a point: x is the log of the perplexity on held-out text after over before, y the sum of both
validation losses. A line joins the runs of a kind that no other run of this kind beats in both. A kind is a method with
what it leaves frozen. Runs of several seeds count with their mean.
"""

from __future__ import annotations

import json
import math
import statistics
from collections import defaultdict
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Annotated, Any

import typer
from rich.console import Console
from rich.table import Table

from training.cli.common.command import run_command
from training.cli.common.numbers import finite
from training.cli.common.paths import output_file
from training.errors import UserError
from training.outputs import write_text
from training.report.charts import Line, line_chart
from training.report.style import styled
from training.settings import MOST
from training.sweep.table import summed_loss

Point = tuple[float, float]


def main(
    runs: Annotated[list[Path], typer.Argument(help="folders of sweeps")],
    svg: Annotated[Path, typer.Option(help="write the chart to this file", callback=output_file)],
    most: Annotated[
        float,
        typer.Option(min=0, max=MOST, callback=finite, help="leave out points above this sum of losses"),
    ] = MOST,
) -> None:
    """Draw the frontier of every kind of method, and print it."""
    found = kinds((sweep.name, result) for sweep in runs for result in _results(sweep))
    if not found:
        raise UserError(f"{runs[0]} has no finished run with general text")
    table = Table("kind", "runs", "frontier: log perplexity ratio, sum of losses")
    lines = []
    methods = sorted({kind.rpartition(", rest ")[0] for kind in found})
    for kind, points in sorted(found.items()):
        best = [point for point in frontier(points) if point[1] <= most]
        table.add_row(kind, str(len(points)), "; ".join(f"{x:.2f}, {y:.2f}" for x, y in best))
        method, _, rest = kind.rpartition(", rest ")
        lines.append(Line(kind, best, colour=methods.index(method), dashed=rest != "frozen"))
    Console().print(table)
    if not any(line.points for line in lines):
        raise UserError(f"no run has a sum of losses below {most}")
    chart = line_chart("task loss against drift", lines, "log perplexity, after − before", "sum of losses")
    write_text(svg, styled(chart) + "\n")


def kinds(results: Iterable[tuple[str, Mapping[str, Any]]]) -> dict[str, list[Point]]:
    """Return the points of each kind of method; a variant of a sweep is one point, the mean over its seeds.

    results: names of sweeps, and results of their runs. Those that are not finite are left out.
    """
    runs: dict[tuple[str, str, str], list[Point]] = defaultdict(list)
    for sweep, result in results:
        if "failed" not in result and "general" in result:
            loss = summed_loss(result)
            drift = math.log(result["general"]["perplexity"]["ratio"])
            if math.isfinite(drift + loss):
                runs[_kind(result["settings"]), sweep, result["variant"]].append((drift, loss))
    found: dict[str, list[Point]] = defaultdict(list)
    for (kind, _, _), points in runs.items():
        found[kind].append((statistics.fmean(x for x, _ in points), statistics.fmean(y for _, y in points)))
    return dict(found)


def frontier(points: Sequence[Point]) -> list[Point]:
    """Return the points that no other one beats in both, by rising drift."""
    best: list[Point] = []
    for point in sorted(points):
        if not best or point[1] < best[-1][1]:
            best.append(point)
    return best


def _kind(settings: Mapping[str, Any]) -> str:
    method, knowledge = settings["method"], settings["knowledge"]
    others = settings["optimiser"].get("other_weights") or "default"
    if method == "gems":
        kept = "no" if not knowledge["null_space"] else "hard" if knowledge["softness"] is None else "soft"
        one = "" if settings["gems"]["multi_subspace"] else ", one subspace"
        method = f"gems{one}, {kept} null space"
    return f"{method}, rest {others}"


def _results(sweep: Path) -> Iterable[Mapping[str, Any]]:
    if not sweep.is_dir():
        raise UserError(f"{sweep} is no folder of a sweep")
    for path in sorted(sweep.glob("*/*/result.json")):
        yield json.loads(path.read_text("utf-8"))


if __name__ == "__main__":
    run_command(main, "bench.pareto")
