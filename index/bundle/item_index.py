"""The items of a bundle at one moment: their texts, identifiers and attributes, and the removed ones.

    catalogue/                every item, removed ones included, row by row (`StoredCatalogue`)
    trie/*.npy                their identifiers
    filters/                  the items of each attribute value
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
from index.stored_catalogue import open_catalogue, save_catalogue
from index.titles import TitleIndex
from index.trie.allowed import SlotSet
from index.trie.filters import Filters
from index.trie.trie import Trie

POOL = "pool"
TITLES = "titles"


@dataclass(frozen=True, eq=False)
class ItemIndex:
    """One version of a bundle's items.

    version: its name, unique within the bundle.
    created: ISO 8601 time.
    removed: rows of removed items, ascending.
    living: slots of the other items; None if no item is removed.
    pool: None in a bundle of an older program, which is ranked by the beam alone.
    stored_titles: titles of the living items; None in a bundle of an older program.
    """

    bundle_id: str
    version: str
    created: str
    catalogue: Catalogue
    trie: Trie
    filters: Filters
    removed: tuple[int, ...]
    living: SlotSet | None
    pool: PoolIndex | None = None
    stored_titles: TitleIndex | None = None

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
        before: ItemIndex | None = None,
        changed: Collection[int] = (),
    ) -> ItemIndex:
        """Build the trie, the filters and the titles of a catalogue.

        codes: int [N, L], the identifiers of the catalogue's rows.
        removed: rows of removed items, in any order.
        pool: of the same catalogue.
        before: an earlier version, of which only the changed rows, and later ones, are read again. Its other items are
        the same.
        Raises `BundleError` if items and identifiers differ in number, `TrieError` for codes that form no trie.
        """
        if len(codes) != len(catalogue):
            raise BundleError(f"{len(codes)} identifiers for {len(catalogue)} items")
        trie = Trie.build(codes)
        rows, living = _split_removed(trie, removed)
        if before is None:
            filters = Filters.build(catalogue, trie, living)
            titles = TitleIndex.build(catalogue.titles, rows)
        else:
            filters = before.filters.updated(before.trie, catalogue, changed, trie, living)
            titles = before.titles().updated(catalogue.titles, changed, rows)
        return cls(bundle_id, version, created, catalogue, trie, filters, rows, living, pool, titles)

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
        self.trie.save(folder / "trie")
        self.filters.save(folder / "filters")
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
        trie = Trie.open(folder / "trie")
        if not about.items == trie.items == len(catalogue):
            raise BundleError(
                f"{folder}: {trie.items} identifiers for {len(catalogue)} items, and {about.items} by index.json"
            )
        rows, living = _split_removed(trie, about.removed)
        filters = Filters.open(folder / "filters", trie.items, living)
        pool = PoolIndex.open(folder / POOL, catalogue) if (folder / POOL).exists() else None
        titles = TitleIndex.open(folder / TITLES, trie.items) if (folder / TITLES).exists() else None
        return cls(
            about.bundle_id,
            about.version,
            about.created,
            catalogue,
            trie,
            filters,
            rows,
            living,
            pool,
            titles,
        )


def open_identifiers(folder: Path) -> tuple[Trie, SlotSet | None]:
    """Read the part of a version that an engine needs: its trie, and `ItemIndex.living`.

    Another process must have opened the same files as an `ItemIndex` before, which checks them.
    """
    about, trie = IndexRecord.load(folder), Trie.open(folder / "trie", checked=True)
    if about.items != trie.items:
        raise BundleError(f"{folder}: {trie.items} identifiers, {about.items} by index.json")
    return trie, _split_removed(trie, about.removed)[1]


def _split_removed(trie: Trie, removed: Sequence[int]) -> tuple[tuple[int, ...], SlotSet | None]:
    """Return the removed rows, ascending and each once, and the slots of all other rows (None for all slots)."""
    rows = tuple(sorted(set(removed)))
    if not rows:
        return rows, None
    member = np.ones(trie.items, bool)
    member[trie.slot_of_item[list(rows)]] = False
    return rows, SlotSet.of(member)
