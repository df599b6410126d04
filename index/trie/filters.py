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
from bisect import bisect_left
from collections import OrderedDict
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from itertools import pairwise
from pathlib import Path
from typing import TypeGuard

import numpy as np
from numpy.typing import NDArray

from index.catalogue import Catalogue, Item
from index.files import read_array
from index.records import Record
from index.trie.allowed import SlotSet
from index.trie.trie import Trie

Value = str | int | float | bool
Condition = Value | list[Value] | Mapping[str, int | float]
BOUNDS = ("gt", "gte", "lt", "lte")
PATH = " > "
MAX_TEXT_CHARS = 512  # nobody filters by longer texts
MAX_NAMED = 20  # attributes in a message
COMPILED_BYTES = 2**28  # size of the cache of filters that requests have used
ARRAYS: dict[str, type[np.generic]] = {  # those of an attribute, as they are stored
    "term_first": np.int64,
    "term_slots": np.int32,
    "numbers": np.float64,
    "number_slots": np.int32,
}


class FilterError(ValueError):
    """The catalogue cannot answer a filter. The message names the known attributes or bounds."""


@dataclass(frozen=True, eq=False)
class Attribute:
    """The items of each value of an attribute.

    terms: strings and booleans as JSON, ascending.
    term_first, term_slots: term_slots[term_first[k] : term_first[k + 1]], int32, are the slots of terms[k].
    numbers: float64, ascending.
    number_slots: int32, the slot of each number.
    """

    terms: list[str]
    term_first: NDArray[np.int64]
    term_slots: NDArray[np.int32]
    numbers: NDArray[np.float64]
    number_slots: NDArray[np.int32]

    @classmethod
    def of(cls, found: list[tuple[int, Value]]) -> Attribute:
        """Build the lists of an attribute. found: pairs (slot, value), one for each value of each item."""
        numbers = sorted((float(value), slot) for slot, value in found if not isinstance(value, str | bool))
        of_term: dict[str, list[int]] = {}
        for slot, value in found:
            if isinstance(value, str | bool):
                of_term.setdefault(json.dumps(value), []).append(slot)
        terms = sorted(of_term)
        return cls(
            terms,
            np.cumsum([0, *(len(of_term[term]) for term in terms)], dtype=np.int64),
            np.array([slot for term in terms for slot in of_term[term]], np.int32),
            np.array([number for number, _ in numbers], np.float64),
            np.array([slot for _, slot in numbers], np.int32),
        )

    def slots(self, condition: Condition) -> NDArray[np.int32]:
        """Return the slots that meet a condition, in any order; a slot may repeat.

        Raises `FilterError` for an unknown bound, or a range without one.
        """
        if isinstance(condition, list):
            return np.concatenate([np.empty(0, np.int32), *(self._equal(value) for value in condition)])
        if isinstance(condition, Mapping):
            return self._range(condition)
        return self._equal(condition)

    def fault(self, slots: int) -> str | None:
        """Return what is wrong with the lists, if they are to be those of `slots` slots; None if nothing is."""
        first, listed = self.term_first, (self.term_slots, self.number_slots)
        if any(one >= other for one, other in pairwise(self.terms)):
            return "the terms do not ascend"
        if len(first) != len(self.terms) + 1 or first[0] != 0 or first[-1] != len(self.term_slots):
            return "term_first does not fit the terms"
        if not (first[1:] > first[:-1]).all():
            return "term_first does not ascend"
        if len(self.numbers) != len(self.number_slots) or not np.isfinite(self.numbers).all():
            return "the numbers are no numbers of slots"
        if not (self.numbers[1:] >= self.numbers[:-1]).all():
            return "the numbers do not ascend"
        if any(len(each) and (each.min() < 0 or each.max() >= slots) for each in listed):
            return f"a slot is none of the {slots}"
        return None

    def _equal(self, value: Value) -> NDArray[np.int32]:
        if not isinstance(value, str | bool):
            return self._range({"gte": value, "lte": value})
        term = json.dumps(value)
        k = bisect_left(self.terms, term)
        if k == len(self.terms) or self.terms[k] != term:
            return np.empty(0, np.int32)
        return self.term_slots[self.term_first[k] : self.term_first[k + 1]]

    def _range(self, bounds: Mapping[str, int | float]) -> NDArray[np.int32]:
        if not bounds or not set(bounds) <= set(BOUNDS):
            raise FilterError(f"a range takes {', '.join(BOUNDS)}, at least one of them")
        first, last = 0, len(self.numbers)
        for name, bound in bounds.items():
            if name in ("gt", "gte"):
                side = "left" if name == "gte" else "right"
                first = max(first, int(np.searchsorted(self.numbers, bound, side)))  # type: ignore[call-overload]
            else:
                side = "right" if name == "lte" else "left"
                last = min(last, int(np.searchsorted(self.numbers, bound, side)))  # type: ignore[call-overload]
        return self.number_slots[first:last]


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
        found: dict[str, list[tuple[int, Value]]] = {}
        for slot, item in zip(trie.slot_of_item.tolist(), catalogue, strict=True):
            for name, value in _values(item):
                found.setdefault(name, []).append((slot, value))
        return cls({name: Attribute.of(values) for name, values in found.items()}, trie.items, living)

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
