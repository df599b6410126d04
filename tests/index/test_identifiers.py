"""Identifier schemes: distinct, informative, deterministic."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from index.identifiers import IdentifierError
from index.identifiers.atomic import atomic_identifiers
from index.identifiers.codebooks import Codebooks
from index.identifiers.semantic import collision_level, semantic_identifiers


def clustered(items: int, seed: int = 0) -> np.ndarray:
    rng = np.random.default_rng(seed)
    centres = rng.normal(size=(8, 16)) * 5
    return (centres[np.arange(items) % 8] + rng.normal(size=(items, 16)) * 0.3).astype(np.float32)


def test_semantic_identifiers_are_distinct_and_put_like_items_together() -> None:
    identifiers = semantic_identifiers(clustered(400), (8, 16), seed=0)
    assert len(np.unique(identifiers.codes, axis=0)) == 400
    sizes = np.array(identifiers.codebook_sizes)
    assert (identifiers.codes.max(0)[:-1] + 1).tolist() == sizes[:-1].tolist()  # every code names an item
    assert sizes[-1] >= 2 * (identifiers.codes[:, -1].max() + 1)  # and there is room for more
    for code in range(8):  # eight clear clusters: each first code holds exactly one of them
        assert len({row % 8 for row in np.flatnonzero(identifiers.codes[:, 0] == code)}) == 1


def test_an_item_that_comes_again_gets_the_codes_of_its_vector() -> None:
    vectors = clustered(200)
    identifiers = semantic_identifiers(vectors, (8, 16))
    assert identifiers.codebooks is not None
    assert np.array_equal(identifiers.codebooks.quantise(vectors[::-1]), identifiers.codes[::-1, :-1])
    for row in (0, 77):
        assert identifiers.codebooks.alternatives(vectors[row])[0] == identifiers.codes[row, 1]


def test_quantising_takes_the_nearest_code_of_what_the_levels_before_left(tmp_path: Path) -> None:
    rng = np.random.default_rng(0)
    books = Codebooks(
        rng.normal(size=6).astype(np.float32), tuple(rng.normal(size=(2, 5, 6)).astype(np.float32))
    )
    books.save(tmp_path)
    vectors = rng.normal(size=(40, 6)).astype(np.float32)
    for row, codes in zip(vectors, Codebooks.open(tmp_path).quantise(vectors), strict=True):
        residual = row - books.mean
        for book, code in zip(books.levels, codes, strict=True):
            assert code == np.linalg.norm(residual - book, axis=1).argmin()
            residual = residual - book[code]


def test_semantic_identifiers_are_repeatable() -> None:
    first, second = (semantic_identifiers(clustered(100), (8, 8), seed=3) for _ in range(2))
    assert np.array_equal(first.codes, second.codes)


def test_items_with_one_embedding_are_told_apart_by_the_last_level() -> None:
    identifiers = semantic_identifiers(np.ones((5, 4), np.float32), (4, 4))
    assert identifiers.codes[:, -1].tolist() == [0, 1, 2, 3, 4]


def test_embeddings_that_are_not_finite_are_refused_by_row() -> None:
    vectors = clustered(20)
    vectors[7, 3] = np.nan
    with pytest.raises(IdentifierError, match="row 7"):
        semantic_identifiers(vectors)


@given(st.lists(st.tuples(st.integers(0, 3), st.integers(0, 3)), min_size=1, max_size=60))
@settings(max_examples=100, deadline=None)
def test_the_collision_level_counts_within_each_prefix(rows: list[tuple[int, int]]) -> None:
    number = collision_level(np.array(rows, np.int32))
    assert number.tolist() == [rows[:k].count(row) for k, row in enumerate(rows)]


def test_atomic_identifiers_name_each_item_by_itself() -> None:
    identifiers = atomic_identifiers(7)
    assert identifiers.codes[:, 0].tolist() == list(range(7))
    assert identifiers.codebook_sizes == (7,)
    with pytest.raises(IdentifierError, match="semantic"):
        atomic_identifiers(10**7)
