"""Figures about the identifiers of an index: use of the codes, collisions, and similarity of items with one prefix.

*Purity* of a depth is the probability that two random items with the same prefix share a category. Compare it with the
same probability for two random items of the whole catalogue: prefixes without meaning would reach this value.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from index.bundle.item_index import ItemIndex
from index.catalogue import Catalogue
from index.sequence.events import Task

PAIRS = 20_000


@dataclass(frozen=True)
class LevelUse:
    """Use of the codes of one level.

    codebook: number of codes.
    used: number of codes with an item.
    perplexity: exp of the entropy: the number of equally frequent codes with the same diversity.
    largest: number of items with the most frequent code.
    """

    codebook: int
    used: int
    perplexity: float
    largest: int


@dataclass(frozen=True)
class Prefixes:
    """Prefixes of one depth.

    count: number of distinct prefixes.
    largest: number of items with the most frequent prefix.
    shared: number of items that share their prefix with another item.
    purity: see above; None if no two items share a prefix, or no item has a category.
    """

    depth: int
    count: int
    largest: int
    shared: int
    purity: float | None


@dataclass(frozen=True)
class Description:
    """Figures about all identifiers of an index.

    items: number of items, removed ones included.
    collisions: number of items that share their whole identifier with another item.
    chance: purity of the whole catalogue.
    examples: titles of the items of one prefix, for a few prefixes.
    """

    items: int
    removed: int
    levels: list[LevelUse]
    prefixes: list[Prefixes]
    collisions: int
    chance: float | None
    examples: list[list[str]]


def describe_index(
    index: ItemIndex,
    codebook_sizes: Sequence[int],
    *,
    task: Task = Task.RECOMMENDATION,
    examples: int = 5,
    seed: int = 0,
) -> Description:
    """Return figures and examples of all identifiers, removed items included.

    codebook_sizes: number of codes of each level.
    task: that writes them, where each task has identifiers of its own.
    examples: number of prefixes with example titles.
    """
    codes = index.named(task).trie.codes()
    rng = np.random.default_rng(seed)
    labels = [frozenset(item.categories) for item in index.catalogue]
    everything = np.zeros(len(codes), np.int64)
    groups = [
        np.unique(codes[:, :depth], axis=0, return_inverse=True)[1] for depth in range(1, codes.shape[1] + 1)
    ]
    whole = np.bincount(groups[-1])
    return Description(
        items=len(codes),
        removed=len(index.removed),
        levels=[_use(codes[:, level], size) for level, size in enumerate(codebook_sizes)],
        prefixes=[_prefixes(depth, group, labels, rng) for depth, group in enumerate(groups, start=1)],
        collisions=int(whole[whole > 1].sum()),
        chance=_purity(everything, labels, rng),
        examples=_examples(index.catalogue, groups[max(0, len(groups) - 2)], examples, rng),
    )


def _use(codes: NDArray[np.int64], size: int) -> LevelUse:
    count = np.bincount(codes, minlength=size)
    share = count[count > 0] / len(codes)
    return LevelUse(size, len(share), float(np.exp(-(share * np.log(share)).sum())), int(count.max()))


def _prefixes(
    depth: int, group: NDArray[np.int64], labels: Sequence[frozenset[str]], rng: np.random.Generator
) -> Prefixes:
    count = np.bincount(group)
    return Prefixes(
        depth, len(count), int(count.max()), int(count[count > 1].sum()), _purity(group, labels, rng)
    )


def _purity(
    group: NDArray[np.int64], labels: Sequence[frozenset[str]], rng: np.random.Generator
) -> float | None:
    """Return the share of random pairs within a group that have a label in common.

    Items without a label are left out.
    """
    rows = np.array([row for row, label in enumerate(labels) if label], np.int64)
    rows = rows[np.argsort(group[rows], kind="stable")]
    first = np.flatnonzero(np.r_[True, np.diff(group[rows]) > 0]) if len(rows) else np.empty(0, np.int64)
    size = np.diff(np.r_[first, len(rows)])
    first, size = first[size > 1], size[size > 1]
    if not len(size):
        return None
    chosen = rng.choice(len(size), PAIRS, p=size / size.sum())
    one = (rng.random(PAIRS) * size[chosen]).astype(np.int64)
    other = (one + 1 + (rng.random(PAIRS) * (size[chosen] - 1)).astype(np.int64)) % size[chosen]
    pairs = zip(rows[first[chosen] + one].tolist(), rows[first[chosen] + other].tolist(), strict=True)
    return float(np.mean([bool(labels[a] & labels[b]) for a, b in pairs]))


def _examples(
    catalogue: Catalogue, group: NDArray[np.int64], count: int, rng: np.random.Generator
) -> list[list[str]]:
    sizes = np.bincount(group)
    several = np.flatnonzero(sizes > 1)
    chosen = rng.permutation(several)[:count]
    return [[catalogue[int(row)].title for row in np.flatnonzero(group == each)[:6]] for each in chosen]
