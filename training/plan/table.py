"""A plan as a table on the console."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from rich.console import Console
from rich.table import Table

from training.outputs import write_json

GB = 10**9
SIZES = ("weights", "state", "gradients", "activations", "peak")


def print_plan(result: dict[str, Any], console: Console) -> None:
    """Print one row for each method, and for blocks that keep their activations or compute them again."""
    memory = result["memory"] / GB
    table = Table(
        title=f"{result['backbone']}, {result['items']:,} items: a part of {result['sequences']} × "
        f"{result['tokens']:,} tokens on a GPU of {memory:g} GB"
    )
    table.add_column("method")
    table.add_column("activations")
    for name in (*SIZES, "fits", "largest part", "TFLOP", "s", "sent"):
        table.add_column(name, justify="right")
    for row in result["rows"]:
        table.add_row(
            row["method"],
            "again" if row["activation_checkpointing"] else "kept",
            *(f"{row[name] / GB:.3g}" for name in SIZES),
            "yes" if row["fits"] else "no",
            f"{row['largest']:,}",
            f"{row['flops'] / 1e12:.3g}",
            f"{row['seconds']:.3g}" if "seconds" in row else "-",
            f"{row['sent'] / GB:.3g}",
        )
    console.print(table)
    for method, why in result["refused"].items():
        console.print(f"{method} is left out: {why}", highlight=False, markup=False)
    knowledge = max(row["knowledge"] for row in result["rows"])
    console.print(
        "Sizes in GB, of each GPU. activations: of a part's forward pass, kept or computed again "
        "(--backbone.activation-checkpointing). largest part: sequences that fit. TFLOP, s: of a part, forward and "
        "back. sent: to the other GPUs, a step. Leave 1 to 2 GB for the GPU's own libraries."
        + (
            f" The knowledge basis has up to {knowledge / GB:.3g} GB in the host's memory."
            if knowledge
            else ""
        ),
        highlight=False,
    )


def save_plan(result: dict[str, Any], path: Path) -> None:
    """Write the plan as JSON. Raises `OutputError`."""
    write_json(path, result)
