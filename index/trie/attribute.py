"""One attribute of a catalogue: the slots of its values, as posting lists and as sorted numbers."""

from __future__ import annotations

import json
from bisect import bisect_left
from collections.abc import Mapping
from dataclasses import dataclass
from itertools import pairwise

import numpy as np
from numpy.typing import NDArray

Value = str | int | float | bool
Condition = Value | list[Value] | Mapping[str, int | float]
BOUNDS = ("gt", "gte", "lt", "lte")
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
        texts = [(json.dumps(value), slot) for slot, value in found if isinstance(value, str | bool)]
        numbers = [(float(value), slot) for slot, value in found if not isinstance(value, str | bool)]
        number: dict[str, int] = {}
        places = np.array([number.setdefault(term, len(number)) for term, _ in texts], np.int64)
        return cls._sorted(
            list(number),
            places,
            np.array([slot for _, slot in texts], np.int32),
            np.array([value for value, _ in numbers], np.float64),
            np.array([slot for _, slot in numbers], np.int32),
        )

    @classmethod
    def _sorted(
        cls,
        terms: list[str],
        places: NDArray[np.int64],
        term_slots: NDArray[np.int32],
        numbers: NDArray[np.float64],
        number_slots: NDArray[np.int32],
    ) -> Attribute:
        """Sort pairs of a term, by its place among `terms`, and a slot, and pairs of a number and a slot."""
        used = np.bincount(places, minlength=len(terms)) > 0
        ascending = sorted((terms[k], k) for k in np.flatnonzero(used).tolist())
        rank = np.zeros(len(terms), np.int64)
        rank[[k for _, k in ascending]] = np.arange(len(ascending))
        of_term = rank[places]
        by_number = np.lexsort((number_slots, numbers))
        return cls(
            [term for term, _ in ascending],
            np.append(0, np.cumsum(np.bincount(of_term, minlength=len(ascending)))).astype(np.int64),
            term_slots[np.lexsort((term_slots, of_term))],
            numbers[by_number],
            number_slots[by_number],
        )

    def moved(self, slot_of: NDArray[np.int32], later: Attribute | None) -> Attribute:
        """Return the lists with other slots, and with those of later items.

        slot_of: int32, the new slot of each old one; -1: the item of the slot is left out.
        later: of items that are not in these lists.
        """
        later = later or Attribute.of([])
        number = {term: k for k, term in enumerate(self.terms)}
        place = np.array([number.setdefault(term, len(number)) for term in later.terms], np.int64)
        texts, numbers = slot_of[self.term_slots], slot_of[self.number_slots]
        mine = np.repeat(np.arange(len(self.terms)), np.diff(self.term_first))
        theirs = place[np.repeat(np.arange(len(later.terms)), np.diff(later.term_first))]
        return self._sorted(
            list(number),
            np.concatenate([mine[texts >= 0], theirs]),
            np.concatenate([texts[texts >= 0], later.term_slots]),
            np.concatenate([self.numbers[numbers >= 0], later.numbers]),
            np.concatenate([numbers[numbers >= 0], later.number_slots]),
        )

    def __bool__(self) -> bool:
        return len(self.term_slots) > 0 or len(self.numbers) > 0

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
