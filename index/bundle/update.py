"""Updates of the catalogue: items are added, changed and removed without training.

A new item gets an identifier (see `naming`). A changed item keeps its identifier, because the model knows the item by
it. New items, and changed texts, get dense rows by their vectors. A removed item keeps its row (see `ItemIndex`) and is
living again if it is added again. If another product is added under its id, the product is a new item: the removed one
keeps its row under an id that nobody else has, so that what was learned of the one is not told of the other.
"""

from __future__ import annotations

from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass, field, replace
from datetime import UTC, datetime
from itertools import count
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from index.bundle.bundle import INDEX, Bundle, BundleInfo
from index.bundle.item_index import ItemIndex
from index.bundle.manifest import BundleError, refusing
from index.bundle.naming import Embed, names_of
from index.bundle.versions import Versions
from index.catalogue import Catalogue, CatalogueError, Item
from index.pool.dense import DenseIndex
from index.pool.pool_index import PoolIndex
from index.sequence.events import Task
from index.words import words

NAMED = 20  # ids in a message


class UnknownItemsError(CatalogueError):
    """Items that are to be removed are not in the catalogue."""


class TooManyRemovedError(CatalogueError):
    """More items would be removed than may be."""

    def __init__(self, leaving: int, living: int) -> None:
        super().__init__(f"{leaving:,} of {living:,} items would be removed")


@dataclass(frozen=True)
class Update:
    """The result of an update.

    version: name of the version that is current after it.
    added, changed, removed: numbers of items.
    pruned: names of the deleted versions.
    """

    version: str
    added: int
    changed: int
    removed: int
    pruned: list[str] = field(default_factory=list)


def update_index(
    bundle: Bundle,
    items: Sequence[Item],
    removed: Sequence[str],
    embed: Embed,
    *,
    keep: int = 3,
    missing_ok: bool = False,
    most_removed: float = 1.0,
) -> Update:
    """Publish the next version of a bundle's index and point to it. Requests see all of the update or no part of it.

    items: new items, and changed items under their old id.
    removed: item ids.
    embed: items → float32 [N, d], with the encoder of the bundle's items (see `BundleInfo`).
    keep: number of newest versions to keep; the version that was current before is kept as well.
    missing_ok: whether items that the catalogue does not hold may be among those to remove.
    most_removed: largest share of the living items that may go.
    If no item changes, no version is published.
    Raises `CatalogueError` for an item that is given twice, or is to be removed and unknown, and if too many would go.
    Raises `IdentifierError` for an item that the codebooks cannot name.
    Raises `BundleError` if another update is running or the disk is full.
    """
    versions = Versions(bundle.path / INDEX)
    with refusing(bundle.path, "updated", (OSError,)), versions.locked():
        now = bundle.refreshed().index
        given = _by_id(items)
        leaving = set(_rows_to_remove(now, removed, given, missing_ok)) - set(now.removed)
        living = len(now.catalogue) - len(now.removed)
        if len(leaving) > most_removed * living:
            raise TooManyRemovedError(len(leaving), living)
        gone_before, rows = set(now.removed), {item_id: now.catalogue.row(item_id) for item_id in given}
        replaced = {
            row
            for item_id, row in rows.items()
            if row in gone_before and is_another_product(now.catalogue[row], given[item_id])
        }
        existing = {
            row: given[item_id] for item_id, row in rows.items() if row is not None and row not in replaced
        }
        changed = [row for row, item in existing.items() if item != now.catalogue[row] or row in gone_before]
        new = [given[item_id] for item_id, row in rows.items() if row is None or row in replaced]
        if not new and not changed and not leaving:
            return Update(now.version, 0, 0, 0)
        embed = _Embedded(embed)
        codes = {task: now.named(task).trie.codes() for task in now.tasks}
        if new:
            codes = {
                task: np.concatenate([known, names_of(new, known, bundle, now.pool, embed, task)])
                for task, known in codes.items()
            }
        retired = {row: _retired(now.catalogue, given, row) for row in replaced}
        others = existing | retired
        catalogue = now.catalogue.updated(others, new)
        gone = sorted((gone_before - set(existing)) | leaving)
        pool = now.pool
        if pool is not None:
            dense = _dense(pool.dense, bundle, now.catalogue, existing, new, embed)
            pool = pool.updated(catalogue, others, dense)
        version = _publish(bundle, versions, catalogue, codes, gone, pool, now, others)
        return Update(version, len(new), len(changed), len(leaving), versions.prune(keep, now.version))


def replace_pool(bundle: Bundle, pool: PoolIndex, *, keep: int = 3) -> str:
    """Publish the next version of a bundle's index, with the same items and another pool, and return its name.

    pool: of the current version's catalogue.
    keep: see `update_index`.
    Raises `BundleError` if another update is running or the disk is full, or the items have changed meanwhile.
    """
    versions = Versions(bundle.path / INDEX)
    with refusing(bundle.path, "updated", (OSError,)), versions.locked():
        now = bundle.refreshed().index
        if now.version != bundle.index.version:
            raise BundleError(f"{bundle.path} has moved on to version {now.version}; try again")
        codes = {task: now.named(task).trie.codes() for task in now.tasks}
        version = _publish(bundle, versions, now.catalogue, codes, now.removed, pool, now)
        versions.prune(keep, now.version)
        return version


def _publish(
    bundle: Bundle,
    versions: Versions,
    catalogue: Catalogue,
    codes: Mapping[Task, NDArray[np.int64]],
    removed: Sequence[int],
    pool: PoolIndex | None,
    before: ItemIndex,
    changed: Collection[int] = (),
) -> str:
    """Publish the next version of the index, point to it, and return its name.

    codes: of `ItemIndex.tasks`. before, changed: see `ItemIndex.build`.
    """
    version = versions.next_name()
    created = datetime.now(UTC).isoformat(timespec="seconds")
    index = ItemIndex.build(
        bundle.info.bundle_id, version, created, catalogue, codes[Task.RECOMMENDATION], removed, pool,
        codes.get(Task.SEARCH), before, changed,
    )  # fmt: skip
    versions.publish(version, index.save)
    return version


def rollback_index(path: Path, version: str) -> None:
    """Make another version the current one, even if the current one is damaged.

    Raises `BundleError` for a version that is missing, is damaged, or belongs to another bundle.
    """
    versions = Versions(path / INDEX)
    with refusing(path, "rolled back"):
        info = BundleInfo.load(path / "bundle.json")
        with versions.locked():
            if version in versions.names() and versions.describe(version).bundle_id != info.bundle_id:
                raise BundleError(f"{versions.folder / version} belongs to another bundle")
            versions.point_to(version)


def is_another_product(removed: Item, added: Item) -> bool:
    """Whether a removed item and one that is added under its id are different things.

    They are if fewer than half of the words of the shorter title are in the other one. A title without words says
    nothing.
    """
    before, now = set(words(removed.title)), set(words(added.title))
    return 2 * len(before & now) < min(len(before), len(now))


def _retired(catalogue: Catalogue, given: Mapping[str, Item], row: int) -> Item:
    """Return the removed item of a row under an id that no item of the catalogue, and none that is given, has."""
    ids = (f"removed-{row}" + "'" * more for more in count())
    free = next(each for each in ids if catalogue.row(each) is None and each not in given)
    return replace(catalogue[row], item_id=free)


def _by_id(items: Sequence[Item]) -> dict[str, Item]:
    given: dict[str, Item] = {}
    for row, item in enumerate(items, start=1):
        if item.item_id in given:
            raise CatalogueError(
                f"item_id {item.item_id!r} is given twice (again in row {row}); ids must be unique"
            )
        given[item.item_id] = item
    return given


def _rows_to_remove(
    now: ItemIndex, removed: Sequence[str], given: dict[str, Item], missing_ok: bool
) -> list[int]:
    """Return the rows of the items to remove. An item that is already removed is no error."""
    both = [item_id for item_id in removed if item_id in given]
    if both:
        raise CatalogueError(f"item_id {_named(both)} is to be changed and to be removed; decide on one")
    unknown = [item_id for item_id in removed if now.catalogue.row(item_id) is None]
    if unknown and not missing_ok:
        raise UnknownItemsError(
            f"item_id {_named(unknown)} cannot be removed: the catalogue holds no such item"
        )
    return [row for item_id in removed if (row := now.catalogue.row(item_id)) is not None]


def _named(item_ids: Sequence[str]) -> str:
    """Return the ids for a message, and how many there are if they are many."""
    shown = ", ".join(repr(item_id) for item_id in item_ids[:NAMED])
    return shown if len(item_ids) <= NAMED else f"{shown}, … ({len(item_ids):,} in all)"


class _Embedded:
    """Remembers the vectors of new items: both their identifiers and their dense rows need them."""

    def __init__(self, embed: Embed) -> None:
        self._embed = embed
        self._found: dict[str, NDArray[np.float32]] = {}

    def __call__(self, items: Sequence[Item]) -> NDArray[np.float32]:
        missing = [item for item in items if item.item_id not in self._found]
        if missing:
            ids = [item.item_id for item in missing]
            self._found |= dict(zip(ids, self._embed(missing), strict=True))
        return np.stack([self._found[item.item_id] for item in items])


def _dense(
    dense: DenseIndex | None,
    bundle: Bundle,
    before: Catalogue,
    existing: dict[int, Item],
    new: Sequence[Item],
    embed: Embed,
) -> DenseIndex | None:
    """Return the dense rows of the new catalogue. Vectors from a file stay with their items, whatever their texts."""
    if dense is None:
        return None
    texts = {row: item for row, item in existing.items() if item.text() != before[row].text()}
    if not bundle.info.item_encoder:
        texts = {}
    if not texts and not new:
        return dense
    vectors = embed([*texts.values(), *new])
    if vectors.shape[1:] != dense.head.mean.shape:
        raise BundleError(
            f"vectors of {vectors.shape[-1]} dimensions do not fit the bundle's items, whose vectors have "
            f"{len(dense.head.mean)}"
        )
    return dense.updated(list(texts), len(new), vectors)
