"""The format of a data set on disk.

A data set is a folder of three files:

`items.jsonl`
    One item in each line: `item_id` (string), `title`, optional `description`, `categories` (list of strings), and any
    further attributes. The order of the lines is the order of the catalogue's rows.
`interactions.parquet`
    One interaction in each row, columns:
    `user_id` (string), `item_id` (string, one of `items.jsonl`), `timestamp` (integer or float; equal time stamps keep
    the order of the file), `behaviour` (`search` or `recommendation`), `query` (string; required if the behaviour is
    `search`, otherwise ignored) and optionally `simulated_query` (string or null): a query that would lead to this
    item, so that a recommendation can be tested as search, too.
`data.json`
    `DataInfo`: name, source, notes on simulated parts, counts, the version that wrote it.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import asdict, dataclass, field
from importlib import metadata
from pathlib import Path

from index.catalogue import Catalogue, CatalogueError, Item
from index.records import parse_json
from index.sequence.events import Task
from training.errors import UserError
from training.inputs import JSON, LINES, InputError, mistaken, read_text

ITEMS_FILE = "items.jsonl"
INTERACTIONS_FILE = "interactions.parquet"
INFO_FILE = "data.json"
FORMAT = 1

INTERACTION_COLUMNS = ("user_id", "item_id", "timestamp", "behaviour")
REQUIRED_COLUMNS = (*INTERACTION_COLUMNS, "query")
SIMULATED_QUERY = "simulated_query"
TEXT_COLUMNS = ("user_id", "item_id", "behaviour", "query", SIMULATED_QUERY)
BEHAVIOURS = tuple(task.value for task in Task)


class DataError(UserError):
    """A data set, or a file to import, is missing or wrong. The message names the place."""


def package_version() -> str:
    """Return the installed version of this package, or `unknown`."""
    try:
        return metadata.version("gems-sr")
    except metadata.PackageNotFoundError:  # a checkout that is not installed
        return "unknown"


@dataclass(frozen=True)
class DataInfo:
    """The content of `data.json`.

    simulation: the parts that are not from the source ("behaviour", "query", "timestamp"), each with a sentence on how
    it was made; empty if all data is real.
    left_out: number of dropped source rows, by reason.
    counts: filled in by `DataSet`.
    notes: sentences on what an import found.
    """

    name: str
    source: str
    simulation: Mapping[str, str] = field(default_factory=dict)
    left_out: Mapping[str, int] = field(default_factory=dict)
    counts: Mapping[str, int] = field(default_factory=dict)
    notes: list[str] = field(default_factory=list)
    gems_version: str = field(default_factory=package_version)
    format: int = FORMAT

    def save(self, path: Path) -> None:
        """Write `data.json`."""
        path.write_text(json.dumps(asdict(self), indent=2, ensure_ascii=False) + "\n", encoding="utf-8")

    @classmethod
    def load(cls, path: Path) -> DataInfo:
        """Read `data.json`. Raises `DataError` if it is not JSON of this format."""
        try:
            record = parse_json(read_text(path, "the data.json of a data set", *JSON))
            found = record["format"]
            if found != FORMAT:
                raise DataError(
                    f"{path}: data set format {found!r}, this version reads {FORMAT}; make the data set again"
                )
            return cls(**record)
        except InputError as error:
            raise DataError(f"{error}; make the data set again") from error
        except (ValueError, KeyError, TypeError) as error:
            raise DataError(f"{path} is not the data.json of a data set ({error}); make it again") from error


def is_data_set(folder: Path) -> bool:
    """Whether `DataSet.save` wrote the folder. Only such a folder may be replaced."""
    return all((folder / name).is_file() for name in (INFO_FILE, ITEMS_FILE, INTERACTIONS_FILE))


def read_items(path: Path) -> Catalogue:
    """Read `items.jsonl`. Raises `DataError` with the line."""
    if wrong := mistaken(path, "JSON Lines", *LINES):
        raise DataError(wrong)
    items: list[Item] = []
    try:
        with path.open(encoding="utf-8") as file:
            for number, line in enumerate(file, start=1):
                if not line.strip():
                    continue
                try:
                    items.append(Item.from_json(parse_json(line)))
                except ValueError as error:  # not JSON, or not an item
                    raise DataError(f"{path} line {number}: {error}") from error
    except UnicodeDecodeError as error:
        raise DataError(f"{path} is not UTF-8 text: {error}") from error
    try:
        return Catalogue(items)
    except CatalogueError as error:
        raise DataError(f"{path}: {error}") from error
