"""A description of a data set as text for people."""

from __future__ import annotations

import statistics
from collections import Counter

from rich.console import Console
from rich.table import Table
from rich.text import Text

from index.sequence.events import Event, Task
from index.words import words
from training.data.dataset import DataSet, UserHistory

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
    events = [event for user in dataset.users for event in user.events]
    used = Counter(event.item for event in events)
    searches = sum(event.behaviour is Task.SEARCH for event in events)
    categories = {category for item in dataset.catalogue for category in item.categories}
    testable = sum(user.search_query(-1) is not None and len(user.events) >= 3 for user in dataset.users)
    rows = [
        ("source", dataset.info.source),
        ("users", f"{len(dataset.users):,}"),
        ("users with a test item (3 or more)", f"{sum(len(u.events) >= 3 for u in dataset.users):,}"),
        ("of those, testable as search", f"{testable:,}"),
        ("items", f"{len(dataset.catalogue):,}"),
        ("items without any interaction", f"{len(dataset.catalogue) - len(used):,}"),
        ("categories", f"{len(categories):,}"),
        ("interactions", f"{len(events):,}"),
        ("searches", _share(searches, len(events))),
        ("recommendations", _share(len(events) - searches, len(events))),
        ("history length", quantiles([len(user.events) for user in dataset.users])),
        ("interactions of an item in use", quantiles(list(used.values()))),
    ]
    rows += _queries([event.query for event in events if event.query])
    rows += [(f"left out: {reason}", f"{count:,}") for reason, count in dataset.info.left_out.items()]
    return [*rows, ("written by gems", dataset.info.gems_version)]


def quantiles(values: list[int]) -> str:
    """Return minimum, quartiles, 95th percentile, maximum and mean as text."""
    ordered = sorted(values)
    shares = {"min": 0.0, "25%": 0.25, "median": 0.5, "75%": 0.75, "95%": 0.95, "max": 1.0}
    parts = [f"{name} {ordered[round(share * (len(ordered) - 1))]:,}" for name, share in shares.items()]
    return ", ".join([*parts, f"mean {statistics.fmean(ordered):.1f}"])


def _queries(queries: list[str]) -> list[tuple[str, str]]:
    if not queries:
        return [("distinct queries", "0")]
    counts = Counter(queries)
    common = ", ".join(f"{query!r} ({count:,})" for query, count in counts.most_common(3))
    return [
        ("distinct queries", f"{len(counts):,}"),
        ("words of a query", quantiles([len(words(query)) for query in queries])),
        ("most common queries", common),
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
