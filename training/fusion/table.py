"""A fusion as tables on the console."""

from __future__ import annotations

from rich.console import Console
from rich.table import Table

from index.pool.fusion import Fusion


def print_fusion(fusion: Fusion, console: Console) -> None:
    """Print the weights and the figures of each task."""
    for task, fitted in fusion.tasks.items():
        table = Table(title=f"{task.value}: weights, fitted on {fitted.figures['cases']} validation cases")
        table.add_column("signal")
        table.add_column("weight", justify="right")
        for name, weight in fitted.weights.items():
            table.add_row(name, f"{weight:.3f}")
        console.print(table)
        for kind, share in fitted.figures["found"].items():
            console.print(f"{task.value}, {kind}: target among the first ten in {share:.1%}", highlight=False)
        alone = fitted.figures["found_by_code_alone"]
        console.print(f"{task.value}, logged, by the model alone: {alone:.1%}", highlight=False)
        console.print(f"{task.value}: suggested min_relevance {fitted.cutoff:.3g}", highlight=False)
