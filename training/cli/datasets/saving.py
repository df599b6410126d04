"""The end of a command that makes a data set: it is written, and what was found is said."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

from rich.console import Console
from rich.text import Text

if TYPE_CHECKING:
    from training.data.dataset import DataSet


def save_data_set(dataset: DataSet, out: Path, force: bool) -> None:
    """Write a data set and tell its counts, what was left out, notes, and which encoder its texts need."""
    from training.data.item_vectors import MINILM, advice_on_encoder  # slow imports, not for --help

    dataset.save(out, force)
    console = Console()
    counts = ", ".join(f"{count:,} {what}" for what, count in dataset.info.counts.items())
    lines = [f"{out}: {counts}"]
    lines += [f"left out: {count:,} {reason}" for reason, count in dataset.info.left_out.items()]
    lines += dataset.info.notes
    lines += [f"simulated {what}: {how}" for what, how in dataset.info.simulation.items()]
    if advice := advice_on_encoder(dataset.catalogue, MINILM):
        lines.append(advice)
    for line in lines:
        console.print(Text(line), soft_wrap=True)
