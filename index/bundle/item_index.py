"""The items of a bundle at one moment: their texts, identifiers and attributes, and the removed ones.

    catalogue/                every item, removed ones included, row by row (`StoredCatalogue`)
    trie/*.npy                their identifiers
    filters/                  the items of each attribute value
    search/trie/, filters/    the same for searches, if they have identifiers of their own
    titles/                   titles by the beginnings of their words; older bundles have none
    pool/                     what ranks candidates besides the beam (`PoolIndex`); older bundles have none
    index.json                version, the bundle it belongs to, and the removed rows

A removed item keeps its row and its identifier, so that the model still understands histories with this item. It is
never returned. Rows are only added: a row means the same item in all later versions.
"""

from __future__ import annotations

from collections.abc import Collection, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from index.bundle.index_record import IndexRecord
from index.bundle.manifest import BundleError
from index.catalogue import Catalogue
from index.pool.pool_index import PoolIndex
from index.sequence.events import Task
from index.stored_catalogue import open_catalogue, save_catalogue
from index.titles import TitleIndex
from index.trie.allowed import Allowed, SlotSet
from index.trie.filters import Filters
from index.trie.trie import Trie

POOL = "pool"
SEARCH = "search"
TITLES = "titles"


@dataclass(frozen=True, eq=False)
class NamedItems:
    """All items under one kind of identifiers. Slots are those of the trie.

    living: slots of the items that are not removed; None for all.
    """

    trie: Trie
    filters: Filters
    living: SlotSet | None

    @classmethod
    def build(
        cls,
        catalogue: Catalogue,
        codes: NDArray[np.integer],
        removed: Sequence[int],
        before: NamedItems | None = None,
        changed: Collection[int] = (),
    ) -> NamedItems:
        """Build the trie and the filters. See `ItemIndex.build`."""
        if len(codes) != len(catalogue):
            raise BundleError(f"{len(codes)} identifiers for {len(catalogue)} items")
        trie = Trie.build(codes)
        living = _living(trie, removed)
        if before is None:
            return cls(trie, Filters.build(catalogue, trie, living), living)
        return cls(trie, before.filters.updated(before.trie, catalogue, changed, trie, living), living)

    @property
    def everything(self) -> Allowed:
        """All items that are not removed."""
        return Allowed.of(self.trie, self.living)

    def save(self, folder: Path) -> None:
        """Write `trie/` and `filters/`."""
        self.trie.save(folder / "trie")
        self.filters.save(folder / "filters")

    @classmethod
    def open(cls, folder: Path, items: int, removed: Sequence[int]) -> NamedItems:
        """Read what `save` wrote. Raises `BundleError` or `ValueError` if it is not of so many items."""
        trie = Trie.open(folder / "trie")
        if trie.items != items:
            raise BundleError(f"{folder}: {trie.items} identifiers for {items} items")
        living = _living(trie, removed)
        return cls(trie, Filters.open(folder / "filters", trie.items, living), living)


@dataclass(frozen=True, eq=False)
class ItemIndex:
    """One version of a bundle's items.

    version: its name, unique within the bundle.
    created: ISO 8601 time.
    names: the items under the identifiers of both tasks, or of recommendations if searches have their own.
    removed: rows of removed items, ascending.
    pool: None in a bundle of an older program, which is ranked by the beam alone.
    search_names: the items under the identifiers that searches write, if they have their own.
    stored_titles: titles of the living items; None in a bundle of an older program.
    """

    bundle_id: str
    version: str
    created: str
    catalogue: Catalogue
    names: NamedItems
    removed: tuple[int, ...]
    pool: PoolIndex | None = None
    stored_titles: TitleIndex | None = None
    search_names: NamedItems | None = None

    def named(self, task: Task) -> NamedItems:
        """Return the items under the identifiers of a task."""
        return self.search_names if self.search_names and task is Task.SEARCH else self.names

    @property
    def every_names(self) -> tuple[NamedItems, ...]:
        """The items under each kind of identifiers: one, or two with those of searches last."""
        return (self.names,) if self.search_names is None else (self.names, self.search_names)

    @property
    def tasks(self) -> tuple[Task, ...]:
        """The tasks whose identifiers are those of `every_names`."""
        return (Task.RECOMMENDATION, Task.SEARCH)[: len(self.every_names)]

    @property
    def trie(self) -> Trie:
        """The trie of `names`."""
        return self.names.trie

    @property
    def filters(self) -> Filters:
        """The filters of `names`."""
        return self.names.filters

    @property
    def living(self) -> SlotSet | None:
        """The living slots of `names`."""
        return self.names.living

    @property
    def search_codes(self) -> NDArray[np.int64] | None:
        """Identifiers that searches write, int64 [N, L]; None if they have none of their own."""
        return None if self.search_names is None else self.search_names.trie.codes()

    @classmethod
    def build(
        cls,
        bundle_id: str,
        version: str,
        created: str,
        catalogue: Catalogue,
        codes: NDArray[np.integer],
        removed: Sequence[int] = (),
        pool: PoolIndex | None = None,
        search_codes: NDArray[np.integer] | None = None,
        before: ItemIndex | None = None,
        changed: Collection[int] = (),
    ) -> ItemIndex:
        """Build the trie, the filters and the titles of a catalogue.

        codes: int [N, L], the identifiers of the catalogue's rows.
        removed: rows of removed items, in any order.
        pool: of the same catalogue.
        search_codes: int [N, L], the identifiers that searches write, if they have their own.
        before: an earlier version, of which only the changed rows, and later ones, are read again. Its other items are
        the same.
        Raises `BundleError` if items and identifiers differ in number, `TrieError` for codes that form no trie.
        """
        rows = tuple(sorted(set(removed)))
        known, searched = (None, None) if before is None else (before.names, before.search_names)
        names = NamedItems.build(catalogue, codes, rows, known, changed)
        search_names = (
            None
            if search_codes is None
            else NamedItems.build(catalogue, search_codes, rows, searched, changed)
        )
        if before is None:
            titles = TitleIndex.build(catalogue.titles, rows)
        else:
            titles = before.titles().updated(catalogue.titles, changed, rows)
        return cls(bundle_id, version, created, catalogue, names, rows, pool, titles, search_names)

    def titles(self) -> TitleIndex:
        """Return the titles of the living items. Slow if they are not stored."""
        if self.stored_titles is None:
            return TitleIndex.build(self.catalogue.titles, self.removed)
        return self.stored_titles

    @property
    def living_count(self) -> int:
        """Number of items that are not removed."""
        return len(self.catalogue) - len(self.removed)

    def save(self, folder: Path) -> None:
        """Write all parts into an existing folder."""
        (folder / "catalogue").mkdir()
        save_catalogue(self.catalogue, folder / "catalogue")
        self.names.save(folder)
        if self.search_names is not None:
            self.search_names.save(folder / SEARCH)
        if self.stored_titles is not None:
            self.stored_titles.save(folder / TITLES)
        if self.pool is not None:
            self.pool.save(folder / POOL)
        about = (self.bundle_id, self.version, self.created, len(self.catalogue), self.removed)
        IndexRecord(*about).save(folder)

    @classmethod
    def open(cls, folder: Path) -> ItemIndex:
        """Read an index that `save` wrote into memory.

        Raises `BundleError` or `ValueError` if a part is wrong, or the parts do not fit each other.
        """
        about = IndexRecord.load(folder)
        catalogue = open_catalogue(folder / "catalogue")
        if about.items != len(catalogue):
            raise BundleError(
                f"{folder}: {len(catalogue)} items in the catalogue, and {about.items} by index.json"
            )
        names = NamedItems.open(folder, about.items, about.removed)
        searched = None
        if (folder / SEARCH).exists():
            searched = NamedItems.open(folder / SEARCH, about.items, about.removed)
        pool = PoolIndex.open(folder / POOL, catalogue) if (folder / POOL).exists() else None
        titles = TitleIndex.open(folder / TITLES, about.items) if (folder / TITLES).exists() else None
        return cls(
            about.bundle_id,
            about.version,
            about.created,
            catalogue,
            names,
            about.removed,
            pool,
            titles,
            searched,
        )


def open_identifiers(folder: Path) -> tuple[Allowed, ...]:
    """Read the part of a version that an engine needs: the living items of `ItemIndex.every_names`.

    Another process must have opened the same files as an `ItemIndex` before, which checks them.
    """
    about = IndexRecord.load(folder)
    found = []
    for part in (folder, folder / SEARCH):
        if part.exists():
            trie = Trie.open(part / "trie", checked=True)
            if about.items != trie.items:
                raise BundleError(f"{part}: {trie.items} identifiers, {about.items} by index.json")
            found.append(Allowed.of(trie, _living(trie, about.removed)))
    return tuple(found)


def _living(trie: Trie, removed: Sequence[int]) -> SlotSet | None:
    """Return the slots of all rows but the removed ones; None for all slots."""
    if not removed:
        return None
    member = np.ones(trie.items, bool)
    member[trie.slot_of_item[list(removed)]] = False
    return SlotSet.of(member)
