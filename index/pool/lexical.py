"""The lexical index: items by the words of their texts (BM25), by whole title and category, and by exact codes.

The text of an item is its title, categories, description and attributes (`Item.text`), and the values of the *search
attributes*, numbers and lists among them. Its terms are those of `index/words.py`.

A word of the query that no item has is replaced by terms that are near it (`Lexicon.near`): typing errors, and
beginnings for the last word. Their scores count less. A word that some item has is never replaced.
"""

from __future__ import annotations

import json
from array import array
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from index.catalogue import FIELDS, Catalogue, CatalogueError, Item
from index.pool.arrays import read_record
from index.pool.keyed_rows import KeyedRows
from index.pool.lexicon import Lexicon
from index.pool.match import LexicalMatch, MatchedWord
from index.pool.postings import Postings
from index.pool.title_words import TitleWords
from index.trie.filters import PATH
from index.words import QueryWord, is_unspaced, query_words, terms, words

FORMAT = 2
WITHOUT_CATEGORIES = 1  # an older format
MOST_ITEMS = 2**31 - 1  # rows are int32
MOST_WORDS = 32  # of a query; later ones are not looked up
MOST_REPLACED = 4  # words of a query that are compared with every term
MAX_NAMED = 20  # attributes in a message


def code(text: str) -> str:
    """Return the form in which titles and codes are compared as a whole: the words without spaces between them."""
    return "".join(words(text))


def label(text: str) -> str:
    """Return the form in which categories are compared as a whole: the distinct words, in alphabetical order."""
    return " ".join(sorted(set(words(text))))


@dataclass(frozen=True, eq=False)
class LexicalIndex:
    """Words of all items.

    items: number of rows of the catalogue, removed items included.
    attributes: names of the search attributes.
    lexicon, postings: all terms, and the items of each.
    titles: terms of each title.
    by_title, by_code: rows by whole title, and by item id or value of a search attribute (see `code`).
    by_category: rows by whole category, and by the last part of its path (see `label`).
    """

    items: int
    attributes: tuple[str, ...]
    lexicon: Lexicon
    postings: Postings
    titles: TitleWords
    by_title: KeyedRows
    by_code: KeyedRows
    by_category: KeyedRows

    @property
    def nbytes(self) -> int:
        """Bytes of all arrays."""
        parts = (
            self.lexicon, self.postings, self.titles, self.by_title, self.by_code, self.by_category
        )  # fmt: skip
        return sum(part.nbytes for part in parts)

    @classmethod
    def build(cls, catalogue: Catalogue, attributes: Sequence[str] = ()) -> LexicalIndex:
        """Build the index of a catalogue. attributes: names of the search attributes.

        Raises `CatalogueError` if no item has such an attribute.
        """
        check_attributes(catalogue, attributes)
        number: dict[str, int] = {}
        terms_of: list[array[int]] = []  # arrays: a list for each of a million items takes gigabytes
        title_terms = array("i")
        title_ends = [0]
        title_words: list[int] = []
        by_title: list[tuple[str, int]] = []
        by_code: list[tuple[str, int]] = []
        by_category: list[tuple[str, int]] = []
        for row, item in enumerate(catalogue):
            terms_of.append(
                array("i", (number.setdefault(term, len(number)) for term in _terms(item, attributes)))
            )
            title = words(item.title)
            by_title.append(("".join(title), row))
            by_code += [(key, row) for key in _codes(item, attributes)]
            by_category += [(label(text), row) for text in _categories(item)]
            named = dict.fromkeys(title)
            title_words.append(len(named))
            named |= dict.fromkeys(terms(item.title))
            title_terms.extend(number.setdefault(term, len(number)) for term in named)
            title_ends.append(len(title_terms))
        ascending = sorted(number)
        order = [number[term] for term in ascending]
        place = np.empty(len(order), np.int32)
        place[order] = np.arange(len(order), dtype=np.int32)
        return cls(
            len(catalogue),
            tuple(attributes),
            Lexicon.of(ascending),
            Postings.build(terms_of, number, order),
            TitleWords(
                np.array(title_ends, np.int64),
                place[np.asarray(title_terms)],
                np.array(title_words, np.int32),
            ),
            KeyedRows.build(by_title),
            KeyedRows.build(by_code),
            KeyedRows.build(by_category),
        )

    def match(self, query: str) -> LexicalMatch:
        """Look up a query. The first `MOST_WORDS` distinct words count."""
        asked = self._matched(query_words(query)[:MOST_WORDS])
        scores, found = np.zeros(self.items, np.float32), np.zeros(self.items, np.uint8)
        for word in asked:
            self._add(word, scores, found)
        key = code(query)
        # "7 11" is no way to write the id 711, as "wd 40" is one to write WD-40.
        apart = key.isdecimal() and len(words(query)) > 1
        coded = self.by_code.of_key("" if apart else key)
        titled, labelled = self.by_title.of_key(key), self.by_category.of_key(label(query))
        return LexicalMatch(asked, scores, found, titled, coded, labelled, self.titles)

    def likeness(self, rows: NDArray[np.integer], others: Sequence[int]) -> NDArray[np.float32]:
        """Return how much each title is like that of the most similar one of `others`, float32 [rows], 0 … 1.

        It is the cosine of their words, weighted by idf (see `Postings`); a row is not like itself.
        """
        return self.titles.likeness(rows, others, self._idf)

    @cached_property
    def _idf(self) -> NDArray[np.float32]:
        """Inverse document frequency of each term, float32 [terms]."""
        without = self.items - self.postings.frequency
        return np.log1p((without + 0.5) / (self.postings.frequency + 0.5)).astype(np.float32)

    def _matched(self, asked: Sequence[QueryWord]) -> tuple[MatchedWord, ...]:
        found = []
        left = MOST_REPLACED
        for word in asked:
            known = tuple(filter(None, map(self._places, word.spellings)))
            if not known and left and not is_unspaced(word.text):
                left -= 1
                near = self.lexicon.near(word.text, self.postings.frequency, unfinished=word is asked[-1])
                replaced_by = tuple(self.lexicon.term(place) for place, _ in near)
                spellings = tuple((place,) for place, _ in near)
                found.append(MatchedWord(word.text, spellings, tuple(f for _, f in near), replaced_by))
            else:
                found.append(MatchedWord(word.text, known, (1.0,) * len(known)))
        return tuple(found)

    def _places(self, spelling: Sequence[str]) -> tuple[int, ...]:
        """Return the places of all terms of a spelling; none if one of them is unknown."""
        places = tuple(place for term in spelling if (place := self.lexicon.find(term)) is not None)
        return places if len(places) == len(spelling) else ()

    def _add(self, word: MatchedWord, scores: NDArray[np.float32], found: NDArray[np.uint8]) -> None:
        """Add the score of a word, by its best spelling, to `scores`, and 1 to `found` of the items that have it."""
        postings = [self.postings.of_all(spelling) for spelling in word.spellings]
        if len(postings) == 1:
            ((rows, score),) = postings
            np.add.at(scores, rows, score if word.is_known else score * np.float32(word.factors[0]))
            np.add.at(found, rows, np.uint8(1))  # `at` is several times faster than indexing
        elif postings:
            best = np.zeros(self.items, np.float32)
            for (rows, score), factor in zip(postings, word.factors, strict=True):
                np.maximum.at(best, rows, score * np.float32(factor))
            scores += best
            found += best > 0

    def save(self, folder: Path) -> None:
        """Write `lexical.json` and the arrays."""
        folder.mkdir(parents=True, exist_ok=True)
        for part in (self.lexicon, self.postings, self.titles):
            part.save(folder)
        self.by_title.save(folder, "by_title")
        self.by_code.save(folder, "by_code")
        self.by_category.save(folder, "by_category")
        record = {"format": FORMAT, "items": self.items, "attributes": list(self.attributes)}
        (folder / "lexical.json").write_text(json.dumps(record, ensure_ascii=False) + "\n", "utf-8")

    @classmethod
    def open(cls, folder: Path) -> LexicalIndex:
        """Read what `save` wrote.

        Raises `ValueError` with the name of the file that is missing or damaged, or does not fit the others.
        """
        record = read_record(folder / "lexical.json")
        written = record.whole("format", WITHOUT_CATEGORIES, FORMAT)
        items, attributes = record.whole("items", 1, MOST_ITEMS), record.texts("attributes")
        lexicon = Lexicon.open(folder)
        return cls(
            items,
            tuple(attributes),
            lexicon,
            Postings.open(folder, len(lexicon), items),
            TitleWords.open(folder, items, len(lexicon)),
            KeyedRows.open(folder, "by_title", items),
            KeyedRows.open(folder, "by_code", items),
            KeyedRows.build(())
            if written == WITHOUT_CATEGORIES
            else KeyedRows.open(folder, "by_category", items),
        )


def check_attributes(catalogue: Catalogue, attributes: Sequence[str]) -> None:
    """Raise `CatalogueError` for a search attribute that no item has."""
    known = sorted({name for item in catalogue for name in item.attributes})
    for wanted in attributes:
        if wanted in known:
            continue
        if wanted in FIELDS:
            raise CatalogueError(f"{wanted!r} is no search attribute: it is searched anyway")
        more = f" and {len(known) - MAX_NAMED} more" if len(known) > MAX_NAMED else ""
        names = ", ".join(known[:MAX_NAMED]) or "none"
        raise CatalogueError(f"no item has the attribute {wanted!r}; the attributes are: {names}{more}")


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
