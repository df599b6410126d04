"""Word queries: recommendations in the log, trained as searches for words of the item.

Logs hold few searches. An item that was taken on a recommendation could have been searched for by what its text says
(pseudo-queries, as in docT5query, Nogueira and Lin 2019, here drawn and not generated). The history stays, so that the
model learns what *this* person means by the words.
"""

from __future__ import annotations

import numpy as np

from index.catalogue import Catalogue, Item
from index.sequence.events import Event, Task
from index.words import spaced, words

LONGEST = 3  # words of the title at most, and of an attribute that someone would type


class WordQueries:
    """Queries of words from the items' titles, categories and short attributes.

    share: of the events without a query that get one.
    """

    def __init__(self, catalogue: Catalogue, share: float) -> None:
        self._catalogue = catalogue
        self._share = share
        self._parts: dict[int, tuple[list[str], list[str]]] = {}

    def add(self, events: list[Event], rng: np.random.Generator) -> list[Event]:
        """Return the events, with queries for a share of those that have none."""
        if not self._share:
            return events
        chosen = rng.random(len(events)) < self._share
        return [
            Event(event.item, Task.SEARCH, query)
            if add and event.query is None and (query := self.draw(event.item, rng))
            else event
            for event, add in zip(events, chosen, strict=True)
        ]

    def draw(self, row: int, rng: np.random.Generator) -> str:
        """Return one or two parts of an item's text: neighbouring words of its title, categories, short attributes.

        The query is empty if the text has no words.
        """
        if row not in self._parts:
            self._parts[row] = _parts(self._catalogue[row])
        title, labels = self._parts[row]
        options = list(labels)
        if title:
            length = int(rng.integers(1, min(LONGEST, len(title)) + 1))
            first = int(rng.integers(0, len(title) - length + 1))
            options.append(spaced(title[first : first + length]))
        count = min(len(options), int(rng.integers(1, 3)))
        return " ".join(options[k] for k in rng.permutation(len(options))[:count])


def _parts(item: Item) -> tuple[list[str], list[str]]:
    """Return the words of the title, and what else someone would type."""
    values = [value for value in item.attributes.values() if isinstance(value, str)]
    labels = dict.fromkeys(
        spaced(found) for text in [*item.categories, *values] if 0 < len(found := words(text)) <= LONGEST
    )
    return words(item.title), list(labels)
