"""The words of some items, as the lexical index is made from them: read once, and merged with those of other items.

To read a million texts takes a minute; an update reads those of its own items alone.
"""

from __future__ import annotations

from array import array
from collections import Counter
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from index.catalogue import Item
from index.pool.keyed_rows import distinct, hash_of
from index.trie.filters import PATH
from index.trie.trie import ranges
from index.words import terms, words

Hashed = tuple[NDArray[np.uint64], NDArray[np.int32]]  # hashes of keys, and a row for each
MOST_COUNT = 2**16 - 2  # how often a term is counted in an item


def code(text: str) -> str:
    """Return the form in which titles and codes are compared as a whole: the words without spaces between them."""
    return "".join(words(text))


def label(text: str) -> str:
    """Return the form in which categories are compared as a whole: the distinct words, in alphabetical order."""
    return " ".join(sorted(set(words(text))))


@dataclass(frozen=True, eq=False)
class ItemWords:
    """Words of some rows.

    rows: int64 [n], ascending.
    terms: each once, in any order. A term is named by its place here.
    held: int32 [3, m]: in row held[0], the term held[1] occurs held[2] times.
    title_rows, title_terms: int32, the distinct terms of each title, its words before the others, row by row.
    title_words: int32 [n], number of the words of each title.
    by_title, by_code, by_category: keys of the rows; see `LexicalIndex`.
    """

    rows: NDArray[np.int64]
    terms: list[str]
    held: NDArray[np.int32]
    title_rows: NDArray[np.int32]
    title_terms: NDArray[np.int32]
    title_words: NDArray[np.int32]
    by_title: Hashed
    by_code: Hashed
    by_category: Hashed

    @classmethod
    def read(cls, items: Iterable[tuple[int, Item]], attributes: Sequence[str]) -> ItemWords:
        """Read items with their rows, ascending. attributes: names of the search attributes."""
        number: dict[str, int] = {}
        rows, title_words = array("q"), array("i")
        held, titled = (array("i"), array("i"), array("i")), (array("i"), array("i"))
        keys = [(array("Q"), array("i")) for _ in range(3)]  # by title, code and category
        for row, item in items:
            rows.append(row)
            counted = Counter(_terms(item, attributes))
            held[0].extend([row] * len(counted))
            held[1].extend([number.setdefault(term, len(number)) for term in counted])
            held[2].extend([min(count, MOST_COUNT) for count in counted.values()])
            title = words(item.title)
            named = dict.fromkeys(title)
            title_words.append(len(named))
            named |= dict.fromkeys(terms(item.title))
            titled[0].extend([row] * len(named))
            titled[1].extend([number.setdefault(term, len(number)) for term in named])
            named_by = (["".join(title)], _codes(item, attributes), map(label, _categories(item)))
            for (hashes, owners), texts in zip(keys, named_by, strict=True):
                found = [hash_of(text) for text in texts if text]
                hashes.extend(found)
                owners.extend([row] * len(found))
        by_title, by_code, by_category = (
            (np.array(hashes, np.uint64), np.array(owners, np.int32)) for hashes, owners in keys
        )
        return cls(
            np.array(rows, np.int64),
            list(number),
            np.stack([np.array(column, np.int32) for column in held]),
            np.array(titled[0], np.int32),
            np.array(titled[1], np.int32),
            np.array(title_words, np.int32),
            by_title,
            by_code,
            by_category,
        )

    def without(self, rows: NDArray[np.integer]) -> ItemWords:
        """Return the words of the other rows."""
        kept = ~np.isin(self.rows, rows)
        if kept.all():
            return self
        in_text, in_title = ~np.isin(self.held[0], rows), ~np.isin(self.title_rows, rows)

        def others(keys: Hashed) -> Hashed:
            stay = ~np.isin(keys[1], rows)
            return keys[0][stay], keys[1][stay]

        return ItemWords(
            self.rows[kept],
            self.terms,
            self.held[:, in_text],
            self.title_rows[in_title],
            self.title_terms[in_title],
            self.title_words[kept],
            *map(others, (self.by_title, self.by_code, self.by_category)),
        )

    def merged(self, other: ItemWords) -> ItemWords:
        """Return the words of both. other: of other rows."""
        number = {term: k for k, term in enumerate(self.terms)}
        place = np.array([number.setdefault(term, len(number)) for term in other.terms], np.int32)
        held = other.held.copy()
        held[1] = place[held[1]]
        rows = np.concatenate([self.rows, other.rows])
        order = np.argsort(rows, kind="stable")
        title_rows = np.concatenate([self.title_rows, other.title_rows])
        in_titles = np.argsort(title_rows, kind="stable")

        def both(mine: Hashed, theirs: Hashed) -> Hashed:
            return np.concatenate([mine[0], theirs[0]]), np.concatenate([mine[1], theirs[1]])

        return ItemWords(
            rows[order],
            list(number),
            np.concatenate([self.held, held], axis=1),
            title_rows[in_titles],
            np.concatenate([self.title_terms, place[other.title_terms]])[in_titles],
            np.concatenate([self.title_words, other.title_words])[order],
            both(self.by_title, other.by_title),
            both(self.by_code, other.by_code),
            both(self.by_category, other.by_category),
        )

    def sorted(self) -> ItemWords:
        """Return the same words, with the terms that occur in alphabetical order, and `held` by term, then by row."""
        used = np.zeros(len(self.terms), bool)
        used[self.held[1]] = used[self.title_terms] = True
        ascending = sorted((self.terms[k], k) for k in np.flatnonzero(used).tolist())
        place = np.full(len(self.terms), -1, np.int32)
        place[[k for _, k in ascending]] = np.arange(len(ascending), dtype=np.int32)
        held = np.stack([self.held[0], place[self.held[1]], self.held[2]])
        return ItemWords(
            self.rows,
            [term for term, _ in ascending],
            held[:, np.lexsort((held[0], held[1]))],
            self.title_rows,
            place[self.title_terms],
            self.title_words,
            *map(_distinct, (self.by_title, self.by_code, self.by_category)),
        )


def spread(first: NDArray[np.int64]) -> NDArray[np.int32]:
    """Return the number of the range of each entry of consecutive ranges, int32. first: their offsets."""
    return ranges(first[:-1], first[1:])[0].astype(np.int32)


def _distinct(keys: Hashed) -> Hashed:
    hashes, rows = distinct(*keys)
    return hashes, rows


def _terms(item: Item, attributes: Sequence[str]) -> list[str]:
    """Return the terms of an item, as often as they occur."""
    found = terms(item.text())
    for name in attributes:
        if not isinstance(item.attributes.get(name), str):  # strings are in the text
            for value in _values(item, name):
                found += terms(value)
    return found


def _codes(item: Item, attributes: Sequence[str]) -> Iterator[str]:
    """Yield the codes that name an item as a whole."""
    yield code(item.item_id)
    for name in attributes:
        yield from map(code, _values(item, name))


def _categories(item: Item) -> Iterator[str]:
    """Yield what names the categories of an item: "Hair > Shampoos" is `Hair > Shampoos` and `Shampoos`."""
    for category in item.categories:
        yield category
        yield category.rpartition(PATH)[2]


def _values(item: Item, name: str) -> Iterator[str]:
    """Yield the values of a search attribute as people type them; truth values are none."""
    value = item.attributes.get(name)
    for one in value if isinstance(value, list) else [value]:
        if isinstance(one, float) and one.is_integer():
            yield str(int(one))
        elif isinstance(one, str | int | float) and not isinstance(one, bool):
            yield str(one)
