"""An evaluation as a table on the console."""

from __future__ import annotations

from typing import Any

from rich.console import Console
from rich.table import Table

from index.sequence.events import Task

SHOWN = ("hit@5", "hit@10", "hit@50", "ndcg@10", "mrr@10")


def print_evaluation(result: dict[str, Any], console: Console) -> None:
    """Print the model first, then its floors; the 95% interval of Hit@10 is in brackets."""
    protocol = result["protocol"]
    for task in (t.value for t in Task if t.value in result):
        table = Table(
            title=f"{task}: {result['cases'][task]} {protocol['split']} cases, {protocol['ranking']}"
        )
        table.add_column("ranking")
        for name in SHOWN:
            table.add_column(name, justify="right")
        low, high = result["intervals"][task]["hit@10"]
        cells = [f"{result[task][name]:.4f}" for name in SHOWN]
        cells[SHOWN.index("hit@10")] += f" [{low:.4f}, {high:.4f}]"
        table.add_row("model", *cells, style="bold")
        for floor, tasks in result["floors"].items():
            if task in tasks:
                table.add_row(floor, *(f"{tasks[task][name]:.4f}" for name in SHOWN))
        console.print(table)
    for task, figures in result.get("newer", {}).items():
        found = f": hit@10 {figures['hit@10']:.4f}" if figures["cases"] else ""
        console.print(
            f"{task}: {figures['cases']} targets were added after the training{found}", highlight=False
        )
    if protocol.get("removed_targets"):
        console.print(
            f"{protocol['removed_targets']} cases are left out: their targets were removed from the bundle",
            highlight=False,
        )
    for aspect, note in result["data"].get("simulation", {}).items():
        console.print(f"simulated {aspect}: {note}", highlight=False)
    if "search_match_share" in result:
        share = result["search_match_share"]
        console.print(f"search results among the first 10 that match a word of the query: {share:.1%}")
