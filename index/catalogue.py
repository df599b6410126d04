"""Items and the catalogue that holds them.

An item is referred to by its *row* (position in the catalogue, 0-based) inside the program
and by its `item_id` (a string of the owner's choosing) outside of it.
"""

from __future__ import annotations

import json
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path

REQUIRED_FIELDS = ("item_id", "title")
FIELDS = (*REQUIRED_FIELDS, "description", "categories")  # any other field of a record is an attribute
Attribute = str | int | float | bool | None | list[str] | list[int]


class CatalogueError(ValueError):
    """The items cannot form a catalogue; the message names the item and what to mend."""


@dataclass(frozen=True, slots=True)
class Item:
    """One thing that can be found.

    `categories` are free text labels or paths ("Beauty > Makeup > Nails"); `attributes` are any
    further fields of the source file. Those that are strings belong to the item's text.
    """

    item_id: str
    title: str
    description: str = ""
    categories: tuple[str, ...] = ()
    attributes: Mapping[str, Attribute] = field(default_factory=dict)

    def text(self) -> str:
        """The words that describe the item: what is embedded, and what a query is matched against."""
        words = [self.title, *self.categories, self.description]
        words += [value for value in self.attributes.values() if isinstance(value, str)]
        return ". ".join(part.strip() for part in words if part.strip())

    def to_json(self) -> dict[str, object]:
        record: dict[str, object] = {"item_id": self.item_id, "title": self.title}
        if self.description:
            record["description"] = self.description
        if self.categories:
            record["categories"] = list(self.categories)
        return record | dict(self.attributes)

    @classmethod
    def from_json(cls, record: Mapping[str, object]) -> Item:
        """Read one record. Raises `CatalogueError` naming the field that is missing or of a wrong type."""
        item_id = record.get("item_id")
        if not isinstance(item_id, str | int) or isinstance(item_id, bool) or item_id == "":
            raise CatalogueError(f"'item_id' must be a non-empty string or an integer, got {item_id!r}")
        title = record.get("title")
        if not isinstance(title, str) or not title.strip():
            raise CatalogueError(f"item {item_id!r}: 'title' must be a non-empty string, got {title!r}")
        description = record.get("description")
        if description is not None and not isinstance(description, str):
            raise CatalogueError(f"item {item_id!r}: 'description' must be a string")
        categories = record.get("categories")
        if categories is None:
            categories = []
        if not isinstance(categories, list) or not all(isinstance(c, str) for c in categories):
            raise CatalogueError(f"item {item_id!r}: 'categories' must be a list of strings")
        attributes = {k: v for k, v in record.items() if k not in FIELDS and v is not None}
        return cls(str(item_id), title.strip(), description or "", tuple(categories), attributes)  # type: ignore[arg-type]


class Catalogue(Sequence[Item]):
    """All items, in a fixed order. `catalogue[row]` is an item, `catalogue.row(item_id)` its row."""

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

    def __len__(self) -> int:
        return len(self._items)

    def __iter__(self) -> Iterator[Item]:
        return iter(self._items)

    def __getitem__(self, row: int) -> Item:  # type: ignore[override]
        return self._items[row]

    def row(self, item_id: str) -> int | None:
        """Row of the item, or None if the catalogue does not hold it."""
        return self._rows.get(item_id)

    @property
    def item_ids(self) -> list[str]:
        """In the order of the rows."""
        return [item.item_id for item in self]

    def texts(self) -> list[str]:
        return [item.text() for item in self._items]

    def save(self, path: Path) -> None:
        with path.open("w", encoding="utf-8") as file:
            for item in self._items:
                file.write(json.dumps(item.to_json(), ensure_ascii=False) + "\n")

    @classmethod
    def load(cls, path: Path) -> Catalogue:
        with path.open(encoding="utf-8") as file:
            return cls(Item.from_json(json.loads(line)) for line in file if line.strip())
