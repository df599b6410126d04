"""Identifiers of items that come after the training, from what a bundle fixed.

A new item gets the codes of its vector from the fixed codebooks, and the first free number after them. If no number is
free, the last code is replaced by the next nearest one. A text identifier spells the new title. Where one code names
one item (atomic identifiers), a new item shares the code of the known item whose text is most like its own: the beam
returns both, and prompts leave it out of histories, where it would mean the other one.

Where each task has identifiers of its own, an item gets both. That of recommendations follows behaviour, which a new
item has none of: the codebooks hold what its text lets expect.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from functools import partial

import numpy as np
from numpy.typing import NDArray

from index.bundle.bundle import Bundle
from index.catalogue import Item
from index.identifiers.codebooks import Codebooks
from index.identifiers.identifiers import IdentifierError
from index.identifiers.schemes.text import spell
from index.pool.pool_index import PoolIndex
from index.sequence.events import Task
from index.sequence.plain_text import plain_tokens

Embed = Callable[[Sequence[Item]], NDArray[np.float32]]


def names_of(
    new: Sequence[Item],
    codes: NDArray[np.int64],
    bundle: Bundle,
    pool: PoolIndex | None,
    embed: Embed,
    task: Task = Task.RECOMMENDATION,
) -> NDArray[np.int64]:
    """Return identifiers for new items: int64 [new, L].

    codes: the identifiers that are taken, int64 [N, L].
    pool: of the known items; only read where one code names one item.
    embed: items → float32 [n, d], with the encoder of the bundle's items (see `BundleInfo`).
    task: that writes them, where each task has identifiers of its own.
    Raises `IdentifierError` for an item that cannot be named.
    """
    if bundle.vocabulary.spelled:
        return _spell(new, codes, bundle)
    codebooks = bundle.codebooks(task)
    if codebooks is None and pool is not None:
        return codes[_relatives(new, pool)]
    if codebooks is None:
        raise IdentifierError(
            f"{len(new)} items are new, and this bundle has no codebooks to name them by ({bundle.info.scheme} "
            "identifiers): train again with them, with semantic identifiers"
        )
    vectors = embed(new)
    if vectors.shape != (len(new), codebooks.dimensions):
        raise IdentifierError(
            f"vectors of {vectors.shape[-1]} dimensions cannot be named: the codebooks are of {codebooks.dimensions}"
        )
    prefixes = codebooks.quantise(vectors)
    near = np.isin(codes[:, 0], prefixes[:, 0])  # other identifiers cannot collide
    taken = set(map(tuple, codes[near].tolist()))
    numbers = bundle.info.codebook_sizes[-1]
    named = []
    for item, vector, prefix in zip(new, vectors, prefixes.tolist(), strict=True):
        identifier = _first_free(prefix, vector, codebooks, numbers, taken)
        if identifier is None:
            raise IdentifierError(
                f"item {item.item_id!r} cannot be named: all identifiers near it are taken; train again with "
                "larger codebooks"
            )
        taken.add(identifier)
        named.append(identifier)
    return np.array(named, np.int64)


def _relatives(new: Sequence[Item], pool: PoolIndex) -> NDArray[np.int64]:
    """Return for each new item the row of the known item whose text shares most with it: int64 [new].

    If no item shares a word, it is the one with the fewest events.
    """
    known = np.flatnonzero(~pool.fresh)
    rarest = known[np.argmin(pool.counts[known])]
    rows = []
    for item in new:
        scores = pool.lexical.match(item.text()).scores[known]
        rows.append(known[np.argmax(scores)] if scores.max() > 0 else rarest)
    return np.array(rows, np.int64)


def _spell(new: Sequence[Item], codes: NDArray[np.int64], bundle: Bundle) -> NDArray[np.int64]:
    taken = set(map(tuple, codes.tolist()))
    tokenise = partial(plain_tokens, bundle.tokenizer, first_added=bundle.vocabulary.first_added)
    named = [spell(item.title, tokenise, bundle.vocabulary, taken, f"item {item.item_id!r}") for item in new]
    return np.array(named, np.int64)


def _first_free(
    prefix: list[int],
    vector: NDArray[np.float32],
    codebooks: Codebooks,
    numbers: int,
    taken: set[tuple[int, ...]],
) -> tuple[int, ...] | None:
    def lasts() -> Iterator[int]:
        yield prefix[-1]
        yield from (code for code in codebooks.alternatives(vector).tolist() if code != prefix[-1])

    for last in lasts():
        for number in range(numbers):
            identifier = (*prefix[:-1], last, number)
            if identifier not in taken:
                return identifier
    return None
