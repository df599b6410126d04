"""The end of a bulk ranking in words."""

from __future__ import annotations

from pathlib import Path

from rich.console import Console

from training.bulk.rank import Outcome


def print_outcome(outcome: Outcome, out: Path, console: Console) -> None:
    """Print what was ranked, how fast, and what a reader of the file should know."""
    tally = outcome.tally
    lines = list(outcome.notes)
    if tally.requests:
        rate = f", {outcome.ranked / outcome.seconds:,.0f} a second" if outcome.ranked else ""
        lines.insert(0, f"{out}: {tally.items:,} items for {tally.requests:,} requests{rate}")
    facts = {
        "recommendations have no known item in their history": tally.no_history,
        "answers are by popularity": tally.popular,
        "answers hold fewer items than asked for": tally.short,
        "answers hold no item, and have no row": tally.empty,
        "entries of histories name an item that the catalogue does not hold; they were dropped": tally.unknown_items,
        "entries of histories name an item newer than the model, which does not read them": tally.new_items,
        "candidates of all requests are not in the catalogue; they were dropped": tally.unknown_candidates,
    }
    lines += [f"{count:,} {what}" for what, count in facts.items() if count]
    for line in lines:
        console.print(line, highlight=False, markup=False, soft_wrap=True)
