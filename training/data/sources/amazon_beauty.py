"""Amazon Beauty 5-core (2014), converted from its normalised files.

The source folder holds `items.jsonl` (`item`, `asin`, `title`, `categories` as paths, `queries`) and `users.jsonl`
(`user`, `items` in time order). It is for measurements only: its terms forbid redistribution of any part of it. It must
never enter the repository.
"""

from __future__ import annotations

from collections.abc import Iterator
from enum import Enum
from pathlib import Path
from typing import Any

from index.catalogue import Catalogue, CatalogueError, Item
from index.records import Record, parse_json
from index.sequence.events import Event, Task
from training.data.dataset import DataSet
from training.data.histories import UserHistory
from training.data.schema import DataError, DataInfo
from training.data.sources.simulation import Simulation
from training.inputs import LINES, mistaken

NAME = "amazon-beauty"
SOURCE = "Amazon Beauty 5-core (2014); research use, not to be redistributed"
HOW = {
    "behaviour": "half of the interactions count as searches, by a fixed hash of (user, position)",
    "query": "made from a category path of the item, chosen by a fixed hash of (user, position)",
    "timestamp": "the position in the user's history; the source has only the order",
}


class Behaviour(Enum):
    """Behaviours of the data set: half of the events are searches, or none is, as in the published protocol."""

    BOTH = "both"
    RECOMMENDATION = "recommendation"


def amazon_beauty(source: Path, behaviour: Behaviour = Behaviour.BOTH) -> DataSet:
    """Read the source folder. Raises `DataError` if a file is missing or is not as described above."""
    for name in ("items.jsonl", "users.jsonl"):
        if not (source / name).is_file():
            raise DataError(
                f"no Amazon Beauty at {source}: {name} is missing; give the folder of the normalised set "
                "(items.jsonl and users.jsonl) with --source"
            )
    items: list[Item] = []
    queries: list[list[str]] = []
    try:
        for number, record in _records(source / "items.jsonl"):
            if record["item"] != len(items):
                raise DataError(
                    f"{source / 'items.jsonl'} line {number}: items must be numbered 0, 1, 2, ..."
                )
            paths = tuple(" > ".join(path) for path in record["categories"])
            items.append(Item(record["asin"], record["title"].strip(), categories=paths))
            queries.append(record["queries"])
        catalogue = Catalogue(items)
        if behaviour is Behaviour.RECOMMENDATION:
            queries = [[] for _ in items]
        users = [_history(record, queries) for _, record in _records(source / "users.jsonl")]
    except (KeyError, TypeError, IndexError, AttributeError, CatalogueError) as error:
        raise DataError(f"{source} is not the normalised Amazon Beauty set: {error!r}") from error
    how = HOW if behaviour is Behaviour.BOTH else {"timestamp": HOW["timestamp"]}
    return DataSet(DataInfo(NAME, SOURCE, how), catalogue, users)


def _records(path: Path) -> Iterator[tuple[int, dict[str, Any]]]:
    if wrong := mistaken(path, "JSON Lines", *LINES):
        raise DataError(wrong)
    with path.open("rb") as file:
        for number, line in enumerate(file, start=1):
            try:
                yield number, Record(path, parse_json(line.decode())).fields
            except ValueError as error:
                raise DataError(f"{path} line {number}: {error}") from error


def _history(record: dict[str, Any], queries: list[list[str]]) -> UserHistory:
    simulation = Simulation(NAME)
    user = str(record["user"])
    events: list[Event] = []
    simulated: list[str | None] = []
    for position, item in enumerate(record["items"]):
        options = queries[item]
        query = options[simulation.choose("query", len(options), user, position)] if options else None
        searched = query is not None and simulation.is_search(user, position)
        events.append(Event(item, Task.SEARCH, query) if searched else Event(item))
        simulated.append(query)
    return UserHistory(user, tuple(events), tuple(simulated), tuple(range(len(events))))
