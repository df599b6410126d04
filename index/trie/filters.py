"""Attribute filters: the items that have the requested attributes.

    {"genres": "Comedy"}                    equality; a list attribute matches by any of its values
    {"genres": ["Comedy", "Drama"]}         any of a set
    {"year": {"gte": 1990, "lt": 2000}}     a range of numbers: gt, gte, lt, lte

All attributes of a filter must match. A category path "A > B > C" is also found by "A" and "A > B".

The index is made with the bundle, like the index of a search engine. It holds posting lists: for each value of each
attribute, the slots of its items. Numbers are sorted, with their slots. A filter therefore touches only the items that
match one of its conditions.
"""

from __future__ import annotations

import json
import sys
from collections import OrderedDict
from collections.abc import Collection, Iterable, Iterator, Mapping
from pathlib import Path
from typing import TypeGuard

import numpy as np
from numpy.typing import NDArray

from index.catalogue import Catalogue, Item
from index.files import read_array
from index.records import Record
from index.trie.allowed import SlotSet
from index.trie.attribute import ARRAYS, Attribute, Condition, FilterError, Value
from index.trie.trie import Trie

PATH = " > "
MAX_TEXT_CHARS = 512  # nobody filters by longer texts
MAX_NAMED = 20  # attributes in a message
COMPILED_BYTES = 2**28  # size of the cache of filters that requests have used


class Filters:
    """The attributes of a catalogue, by name.

    slots: number of all slots.
    living: slots of the items that are not removed; None for all.
    """

    def __init__(self, attributes: Mapping[str, Attribute], slots: int, living: SlotSet | None) -> None:
        self._attributes = dict(attributes)
        self._slots = slots
        self._living = living
        self._compiled: OrderedDict[str, SlotSet] = OrderedDict()

    @property
    def names(self) -> list[str]:
        """Names of all attributes, ascending."""
        return sorted(self._attributes)

    @classmethod
    def build(cls, catalogue: Catalogue, trie: Trie, living: SlotSet | None = None) -> Filters:
        """Build the filters of all attributes and of the categories.

        Only booleans, texts of at most `MAX_TEXT_CHARS`, and numbers that a double can hold are indexed.
        """
        return cls(_attributes(zip(trie.slot_of_item.tolist(), catalogue, strict=True)), trie.items, living)

    def updated(
        self,
        before: Trie,
        catalogue: Catalogue,
        changed: Collection[int],
        trie: Trie,
        living: SlotSet | None,
    ) -> Filters:
        """Return what `build` returns for a later catalogue, and read only its changed and its later rows.

        before: the trie of these filters. trie, living: those of the later catalogue.
        """
        slot_of = trie.slot_of_item[before.slot_items]
        slot_of[before.slot_of_item[list(changed)]] = -1
        rows = [*sorted(changed), *range(before.items, trie.items)]
        read = _attributes((int(trie.slot_of_item[row]), catalogue[row]) for row in rows)
        moved = {name: each.moved(slot_of, read.get(name)) for name, each in self._attributes.items()}
        found = read | moved
        return Filters({name: each for name, each in found.items() if each}, trie.items, living)

    def select(self, asked: Mapping[str, Condition]) -> SlotSet:
        """Return the slots of the living items that meet every condition.

        asked: condition by attribute.
        Raises `FilterError` for an unknown attribute or bound.
        """
        key = json.dumps(asked, sort_keys=True)
        if key not in self._compiled:
            member = (
                np.ones(self._slots, bool)
                if self._living is None
                else _mask(self._living.members, self._slots)
            )
            for name, condition in asked.items():
                member &= _mask(self._attribute(name).slots(condition), self._slots)
            self._compiled[key] = SlotSet.of(member)
            while len(self._compiled) > 1 and sum(s.nbytes for s in self._compiled.values()) > COMPILED_BYTES:
                self._compiled.popitem(last=False)
        self._compiled.move_to_end(key)
        return self._compiled[key]

    def _attribute(self, name: str) -> Attribute:
        if name not in self._attributes:
            known = ", ".join(self.names[:MAX_NAMED]) or "none"
            more = f" and {len(self.names) - MAX_NAMED} more" if len(self.names) > MAX_NAMED else ""
            raise FilterError(f"no item has such an attribute; the attributes are: {known}{more}")
        return self._attributes[name]

    def save(self, folder: Path) -> None:
        """Write `attributes.json` and the arrays of each attribute."""
        folder.mkdir(parents=True, exist_ok=True)
        for k, name in enumerate(self.names):
            attribute = self._attributes[name]
            for part in ARRAYS:
                np.save(folder / f"{k}_{part}.npy", getattr(attribute, part))
        terms = {name: self._attributes[name].terms for name in self.names}
        (folder / "attributes.json").write_text(json.dumps(terms, ensure_ascii=False) + "\n", "utf-8")

    @classmethod
    def open(cls, folder: Path, slots: int, living: SlotSet | None = None) -> Filters:
        """Read what `save` wrote. slots, living: see the class.

        Raises `ValueError` that names the file if the lists are not those of `slots` slots.
        """
        record = Record.read(folder / "attributes.json")
        if len(list(folder.glob("*.npy"))) != len(ARRAYS) * len(record.names):
            raise ValueError(
                f"{folder}: attributes.json names {len(record.names)}, which do not fit the arrays"
            )
        attributes = {}
        for k, name in enumerate(record.names):
            attributes[name] = Attribute(
                record.texts(name),
                *(read_array(folder / f"{k}_{part}.npy", kind) for part, kind in ARRAYS.items()),
            )
            wrong = attributes[name].fault(slots)
            if wrong:
                raise ValueError(f"{folder}: of attribute {k}, {wrong}")
        return cls(attributes, slots, living)


def _attributes(items: Iterable[tuple[int, Item]]) -> dict[str, Attribute]:
    """Return the attributes of items with their slots."""
    found: dict[str, list[tuple[int, Value]]] = {}
    for slot, item in items:
        for name, value in _values(item):
            found.setdefault(name, []).append((slot, value))
    return {name: Attribute.of(values) for name, values in found.items()}


def _values(item: Item) -> Iterator[tuple[str, Value]]:
    """Yield the pairs (attribute, value) of an item, each once."""
    paths = {prefix for category in item.categories for prefix in _prefixes(category)}
    yield from (("categories", path) for path in sorted(paths) if _fits(path))
    for name, value in item.attributes.items():
        several = value if isinstance(value, list) else [value]
        yield from ((name, one) for one in dict.fromkeys(several) if _fits(one))


def _fits(value: object) -> TypeGuard[Value]:
    if isinstance(value, str):
        return len(value) <= MAX_TEXT_CHARS
    return isinstance(value, int | float) and abs(value) <= sys.float_info.max  # also False for NaN


def _mask(slots: NDArray[np.integer], total: int) -> NDArray[np.bool_]:
    member = np.zeros(total, bool)
    member[slots] = True
    return member


def _prefixes(path: str) -> Iterator[str]:
    """Yield the prefixes of a path: "A > B > C" gives "A", "A > B" and "A > B > C"."""
    parts = path.split(PATH)
    return (PATH.join(parts[:end]) for end in range(1, len(parts) + 1))
