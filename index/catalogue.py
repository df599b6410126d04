"""Items and the catalogue that holds them.

Inside the program an item is named by its *row*, its position in the catalogue, from 0. Outside the program it is named
by its `item_id`, a string that the owner of the data chooses.
"""

from __future__ import annotations

import json
import math
import re
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from sys import intern

from index.records import parse_json

_CONTROL = re.compile(r"[\x00-\x1f\x7f-\x9f]")
_ENCODE = json.JSONEncoder(ensure_ascii=False).encode  # one for all: it is made anew by each `json.dumps`
REQUIRED_FIELDS = ("item_id", "title")
FIELDS = (*REQUIRED_FIELDS, "description", "categories")  # any other field of a record is an attribute
MAX_ID_CHARS = 512
MAX_TITLE_CHARS = 10_000
MAX_ATTRIBUTES = 1_000  # different names; each is an index of its own
Attribute = str | int | float | bool | None | list[str] | list[int]


class CatalogueError(ValueError):
    """The items cannot form a catalogue. The message names the item and the remedy."""


@dataclass(frozen=True, slots=True)
class Item:
    """One item that can be found.

    categories: labels or paths, as free text ("Beauty > Makeup > Nails").
    attributes: all other fields of the source file. Strings among them are part of the item's text.
    """

    item_id: str
    title: str
    description: str = ""
    categories: tuple[str, ...] = ()
    attributes: Mapping[str, Attribute] = field(default_factory=dict)

    def text(self) -> str:
        """Return the words that describe the item: this text is embedded, and queries are compared with it."""
        words = [self.title, *self.categories, self.description]
        words += [value for value in self.attributes.values() if isinstance(value, str)]
        return ". ".join(part.strip() for part in words if part.strip())

    def to_json(self) -> dict[str, object]:
        """Return the record that `from_json` reads."""
        record: dict[str, object] = {"item_id": self.item_id, "title": self.title}
        if self.description:
            record["description"] = self.description
        if self.categories:
            record["categories"] = list(self.categories)
        return record | dict(self.attributes)

    @classmethod
    def from_json(cls, record: object) -> Item:
        """Read one record. Raises `CatalogueError` if it is no object, or a field is missing or has a wrong type."""
        if not isinstance(record, dict):
            raise CatalogueError(f"an item must be a JSON object, got {_shown(record)}")
        item_id = record.get("item_id")
        if not isinstance(item_id, str | int) or isinstance(item_id, bool) or item_id == "":
            raise CatalogueError(f"'item_id' must be a non-empty string or an integer, got {_shown(item_id)}")
        if not (name := str(item_id)).strip() or len(name) > MAX_ID_CHARS or _CONTROL.search(name):
            raise CatalogueError(
                f"'item_id' must be 1 to {MAX_ID_CHARS} characters, not blank and without control characters, "
                f"got {_shown(item_id)}"
            )
        title = record.get("title")
        if not isinstance(title, str) or not title.strip():
            raise CatalogueError(f"item {item_id!r}: 'title' must be a non-empty string, got {_shown(title)}")
        if len(title) > MAX_TITLE_CHARS:
            raise CatalogueError(
                f"item {item_id!r}: 'title' has {len(title):,} characters, at most {MAX_TITLE_CHARS:,} are possible; "
                "put long texts into 'description'"
            )
        description = record.get("description")
        if description is not None and not isinstance(description, str):
            raise CatalogueError(f"item {item_id!r}: 'description' must be a string")
        categories = record.get("categories")
        if categories is None:
            categories = []
        if not isinstance(categories, list) or not all(isinstance(c, str) for c in categories):
            raise CatalogueError(f"item {item_id!r}: 'categories' must be a list of strings")
        # each JSON text has names of its own: a million items would hold them a million times
        attributes = {intern(k): v for k, v in record.items() if k not in FIELDS and v is not None}
        for attribute, value in attributes.items():
            if not _is_attribute(value):
                raise CatalogueError(
                    f"item {item_id!r}: attribute {attribute!r} must be a string, a finite number, a boolean, or "
                    f"a list of strings or of integers, got {_shown(value)}"
                )
        return cls(name, title.strip(), description or "", tuple(categories), attributes)


class Catalogue(Sequence[Item]):
    """All items, in a fixed order. `catalogue[row]` is an item, `catalogue.row(item_id)` is its row.

    Raises `CatalogueError` if there is no item, two items have one id, or there are more than `MAX_ATTRIBUTES`.
    """

    def __init__(self, items: Iterable[Item]) -> None:
        self._items = list(items)
        self._rows: dict[str, int] = {}
        for row, item in enumerate(self._items):
            first = self._rows.setdefault(item.item_id, row)
            if first != row:
                raise CatalogueError(
                    f"item_id {item.item_id!r} names two items (rows {first + 1} and {row + 1}); ids must be unique"
                )
        if not self._items:
            raise CatalogueError("the catalogue is empty; at least one item is needed")
        self.check_attributes(self._items)

    @staticmethod
    def check_attributes(items: Iterable[Item]) -> None:
        """Raise `CatalogueError` if items have more than `MAX_ATTRIBUTES` different attributes."""
        attributes: set[str] = set().union(*(item.attributes for item in items))
        if len(attributes) > MAX_ATTRIBUTES:
            raise CatalogueError(
                f"the items have {len(attributes):,} different attributes, at most {MAX_ATTRIBUTES:,} are possible; "
                "write what differs from item to item as values of one list attribute"
            )

    def __len__(self) -> int:
        return len(self._items)

    def __iter__(self) -> Iterator[Item]:
        return iter(self._items)

    def __getitem__(self, row: int) -> Item:  # type: ignore[override]
        return self._items[row]

    def row(self, item_id: str) -> int | None:
        """Return the row of an item, or None if the catalogue does not hold it."""
        return self._rows.get(item_id)

    @property
    def item_ids(self) -> list[str]:
        """Ids of all items, in the order of the rows."""
        return [item.item_id for item in self]

    @property
    def titles(self) -> Sequence[str]:
        """Titles of all items, in the order of the rows."""
        return [item.title for item in self._items]

    def item_id(self, row: int) -> str:
        """Return the id of the item of a row."""
        return self._items[row].item_id

    def title(self, row: int) -> str:
        """Return the title of the item of a row."""
        return self._items[row].title

    def texts(self) -> list[str]:
        """Return the text of each item, in the order of the rows."""
        return [item.text() for item in self._items]

    def updated(self, changed: Mapping[int, Item], new: Sequence[Item]) -> Catalogue:
        """Return a catalogue with other items in some rows, and with new ones behind.

        Raises `CatalogueError` if two items have one id.
        """
        return Catalogue([*(changed.get(row, item) for row, item in enumerate(self)), *new])

    def lines(self) -> Iterator[bytes]:
        """Yield the items as lines of a JSON Lines file, in the order of the rows."""
        yield from map(line_of, self._items)

    def save(self, path: Path) -> None:
        """Write the items as JSON Lines."""
        with path.open("wb") as file:
            file.writelines(self.lines())

    @classmethod
    def load(cls, path: Path) -> Catalogue:
        """Read the items that `save` wrote. Raises `CatalogueError` that names the line."""
        return cls(_items(path))


def line_of(item: Item) -> bytes:
    """Return an item as a line of a JSON Lines file."""
    return (_ENCODE(item.to_json()) + "\n").encode()


def has_control(text: str) -> bool:
    """Whether a text holds a control character."""
    return _CONTROL.search(text) is not None


def _is_attribute(value: object) -> bool:
    if isinstance(
        value, list
    ):  # bool is a kind of int in Python, but a list of booleans is no list of numbers
        return all(isinstance(each, str) for each in value) or all(
            isinstance(each, int) and not isinstance(each, bool) for each in value
        )
    return math.isfinite(value) if isinstance(value, float) else isinstance(value, str | int)


def _shown(value: object) -> str:
    text = repr(value)
    return text if len(text) <= 80 else f"{text[:77]}..."


def _items(path: Path) -> Iterator[Item]:
    with path.open(encoding="utf-8") as file:
        for number, line in enumerate(file, start=1):
            if line.strip():
                try:
                    yield Item.from_json(parse_json(line))
                except ValueError as error:
                    raise CatalogueError(f"{path}, line {number}: {error}") from error
