"""The lexical index: items by the words of their texts (BM25), by whole title and category, and by exact codes.

The text of an item is its title, categories, description and attributes (`Item.text`), and the values of the *search
attributes*, numbers and lists among them. Its terms are those of `index/words.py`.

A word of the query that no item has is replaced by terms that are near it (`Lexicon.near`): typing errors, and
beginnings for the last word. Their scores count less. A word that some item has is never replaced.
"""

from __future__ import annotations

import json
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from index.arrays import read_record
from index.catalogue import FIELDS, Catalogue, CatalogueError
from index.pool.item_words import ItemWords, code, label, spread
from index.pool.keyed_rows import KeyedRows
from index.pool.lexicon import Lexicon
from index.pool.match import LexicalMatch, MatchedWord
from index.pool.postings import Postings
from index.pool.title_words import TitleWords
from index.words import QueryWord, is_unspaced, query_words, words

FORMAT = 3
WITHOUT_COUNTS = 2  # older formats: scores in place of counts
WITHOUT_CATEGORIES = 1
MOST_ITEMS = 2**31 - 1  # rows are int32
MOST_WORDS = 32  # of a query; later ones are not looked up
MOST_REPLACED = 4  # words of a query that are compared with every term
MAX_NAMED = 20  # attributes in a message


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
        return cls._of(ItemWords.read(enumerate(catalogue), attributes), attributes)

    def updated(self, catalogue: Catalogue, changed: Iterable[int]) -> LexicalIndex:
        """Return the index of a catalogue with later rows and changed items: what `build` returns, without the rest.

        changed: rows whose items are others. An index of an older format reads all items.
        """
        if self.postings.counts is None:
            return LexicalIndex.build(catalogue, self.attributes)
        rows = [*sorted(changed), *range(self.items, len(catalogue))]
        read = ItemWords.read(((row, catalogue[row]) for row in rows), self.attributes)
        kept = self._words().without(np.array(rows, np.int64))
        return LexicalIndex._of(kept.merged(read), self.attributes)

    @classmethod
    def _of(cls, read: ItemWords, attributes: Sequence[str]) -> LexicalIndex:
        """Return the index of the words of all rows."""
        read = read.sorted()
        items, rows = len(read.rows), np.arange(len(read.rows) + 1)
        return cls(
            items,
            tuple(attributes),
            Lexicon.of(read.terms),
            Postings.build(read.held, len(read.terms), items),
            TitleWords(
                np.searchsorted(read.title_rows, rows).astype(np.int64), read.title_terms, read.title_words
            ),
            KeyedRows.of(*read.by_title),
            KeyedRows.of(*read.by_code),
            KeyedRows.of(*read.by_category),
        )

    def _words(self) -> ItemWords:
        """Return what the index was made of."""
        postings, titles = self.postings, self.titles
        assert postings.counts is not None
        held = (postings.rows, spread(postings.first), postings.counts.astype(np.int32))
        return ItemWords(
            np.arange(self.items),
            self.lexicon.terms(),
            np.stack(held),
            spread(titles.first),
            titles.terms,
            titles.words,
            self.by_title.pairs(),
            self.by_code.pairs(),
            self.by_category.pairs(),
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
            Postings.open(folder, len(lexicon), items, counted=written > WITHOUT_COUNTS),
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
