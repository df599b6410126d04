"""A description of a data set as text for people."""

from __future__ import annotations

import numpy as np
from numpy.typing import ArrayLike
from rich.console import Console
from rich.table import Table
from rich.text import Text

from index.sequence.events import Event, Task
from index.words import words
from training.data.dataset import DataSet
from training.data.histories import NONE, Histories, UserHistory

EXAMPLES = 3
EXAMPLE_EVENTS = 6


def describe(dataset: DataSet, console: Console) -> None:
    """Print a table of figures, notes on simulated data, and a few histories."""
    # titles and queries are shown as `Text`: they are data, never markup
    table = Table(title=Text(f"data set {dataset.info.name}"), show_header=False)
    table.add_column(style="bold")
    table.add_column()
    for label, value in figures(dataset):
        table.add_row(label, Text(value))
    console.print(table)
    if dataset.info.simulation:
        console.print(Text("Simulated, not observed:", style="bold yellow"))
        for what, how in dataset.info.simulation.items():
            console.print(Text(f"  {what}: {how}"))
    else:
        console.print("Nothing in this data set is marked as simulated.")
    for user in dataset.users[:EXAMPLES]:
        console.print(_example(dataset, user))


def figures(dataset: DataSet) -> list[tuple[str, str]]:
    """Return the label and the value of each line of the table."""
    log = dataset.users
    used = np.bincount(log.items, minlength=len(dataset.catalogue))
    used = used[used > 0]
    events, searches = len(log.items), dataset.info.counts[Task.SEARCH.value]
    categories = {category for item in dataset.catalogue for category in item.categories}
    tested = log.lengths >= 3
    testable = int(log.testable[log.offsets[1:][tested] - 1].sum())
    rows = [
        ("source", dataset.info.source),
        ("users", f"{len(dataset.users):,}"),
        ("users with a test item (3 or more)", f"{int(tested.sum()):,}"),
        ("of those, testable as search", f"{testable:,}"),
        ("items", f"{len(dataset.catalogue):,}"),
        ("items without any interaction", f"{len(dataset.catalogue) - len(used):,}"),
        ("categories", f"{len(categories):,}"),
        ("interactions", f"{events:,}"),
        ("searches", _share(searches, events)),
        ("recommendations", _share(events - searches, events)),
        ("history length", quantiles(log.lengths)),
        ("interactions of an item in use", quantiles(used)),
    ]
    rows += _queries(log)
    rows += [(f"left out: {reason}", f"{count:,}") for reason, count in dataset.info.left_out.items()]
    rows += [("note", note) for note in dataset.info.notes]
    return [*rows, ("written by gems", dataset.info.gems_version)]


def quantiles(values: ArrayLike) -> str:
    """Return minimum, quartiles, 95th percentile, maximum and mean as text."""
    ordered = np.sort(np.asarray(values))
    shares = {"min": 0.0, "25%": 0.25, "median": 0.5, "75%": 0.75, "95%": 0.95, "max": 1.0}
    parts = [f"{name} {ordered[round(share * (len(ordered) - 1))]:,}" for name, share in shares.items()]
    return ", ".join([*parts, f"mean {ordered.mean():.1f}"])


def _queries(log: Histories) -> list[tuple[str, str]]:
    counts = np.bincount(log.queries[log.queries != NONE], minlength=len(log.texts))
    asked = np.flatnonzero(counts)
    if not len(asked):
        return [("distinct queries", "0")]
    lengths = [len(words(log.texts[k].as_py())) for k in asked.tolist()]
    common = asked[np.argsort(-counts[asked], kind="stable")][:3]
    return [
        ("distinct queries", f"{len(asked):,}"),
        ("words of a query", quantiles(np.repeat(lengths, counts[asked]))),
        (
            "most common queries",
            ", ".join(f"{log.texts[k].as_py()!r} ({counts[k]:,})" for k in common.tolist()),
        ),
    ]


def _share(part: int, whole: int) -> str:
    return f"{part:,} ({part / whole:.1%})"


def _example(dataset: DataSet, user: UserHistory) -> Table:
    shown = user.events[-EXAMPLE_EVENTS:]
    title = f"user {user.user_id}: the last {len(shown)} of {len(user.events)} interactions"
    table = Table(title=Text(title), title_justify="left")
    for column in ("behaviour", "query", "item"):
        table.add_column(column)
    for event in shown:
        table.add_row(event.behaviour.value, Text(event.query or ""), Text(_title(dataset, event)))
    return table


def _title(dataset: DataSet, event: Event) -> str:
    item = dataset.catalogue[event.item]
    return f"{item.title} [{item.item_id}]"
