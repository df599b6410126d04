"""Identifier schemes: distinct, informative, deterministic."""

from __future__ import annotations

from functools import cache
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from index.identifiers.balancing import balance
from index.identifiers.codebooks import Codebooks, Layer, costs
from index.identifiers.identifiers import IdentifierError, Identifiers, ItemsToName
from index.identifiers.levels import sample
from index.identifiers.quantisers import kmeans
from index.identifiers.quantisers.kmeans import filled
from index.identifiers.registry import load_scheme, quantiser_names
from index.identifiers.schemes import auto
from index.identifiers.schemes.atomic import atomic_identifiers
from index.identifiers.schemes.semantic import (
    COLLISION_LIMIT,
    collision_level,
    semantic_identifiers,
)
from training.config import TrainConfig

every = pytest.mark.parametrize("quantiser", quantiser_names())


def clustered(items: int, seed: int = 0) -> np.ndarray:
    rng = np.random.default_rng(seed)
    centres = rng.normal(size=(8, 16)) * 5
    return (centres[np.arange(items) % 8] + rng.normal(size=(items, 16)) * 0.3).astype(np.float32)


def made(quantiser: str, vectors: np.ndarray, sizes: tuple[int, ...], **settings: float) -> Identifiers:
    behaviour = np.random.default_rng(1).normal(size=(len(vectors), 8)).astype(np.float32)
    return semantic_identifiers(vectors, sizes, quantiser=quantiser, behaviour=behaviour, **settings)


@cache
def made_by(quantiser: str) -> Identifiers:
    return made(quantiser, clustered(400), (8, 16))


@every
def test_semantic_identifiers_are_distinct_and_put_like_items_together(quantiser: str) -> None:
    identifiers = made_by(quantiser)
    assert len(np.unique(identifiers.codes, axis=0)) == 400
    sizes = np.array(identifiers.codebook_sizes)
    assert (identifiers.codes.max(0)[:-1] + 1).tolist() == sizes[:-1].tolist()  # every code names an item
    assert sizes[-1] >= 2 * (identifiers.codes[:, -1].max() + 1)  # and there is room for more
    _, prefix = np.unique(identifiers.codes[:, :2], axis=0, return_inverse=True)
    majority = [np.bincount(np.flatnonzero(prefix == each) % 8).max() for each in range(prefix.max() + 1)]
    assert sum(majority) > 0.98 * 400  # eight clear clusters: a prefix holds items of one of them


def test_clear_clusters_are_the_first_codes_of_k_means() -> None:
    for code in range(8):
        assert len({row % 8 for row in np.flatnonzero(made_by("kmeans").codes[:, 0] == code)}) == 1


@every
def test_an_item_that_comes_again_gets_the_codes_of_its_vector(tmp_path: Path, quantiser: str) -> None:
    vectors, identifiers = clustered(400), made_by(quantiser)
    assert identifiers.codebooks is not None
    identifiers.codebooks.save(tmp_path)
    stored = Codebooks.open(tmp_path)
    assert stored.dimensions == 16
    assert np.array_equal(stored.quantise(vectors[::-1]), identifiers.codes[::-1, :-1])
    for row in (0, 77):
        assert stored.alternatives(vectors[row])[0] == identifiers.codes[row, 1]


def test_quantising_takes_the_cheapest_code_of_what_the_levels_before_left(tmp_path: Path) -> None:
    rng = np.random.default_rng(0)

    def normal(*shape: int) -> np.ndarray:
        return rng.normal(size=shape).astype(np.float32)

    encoder = (Layer(normal(6, 9), normal(9)), Layer(normal(9, 4), normal(4)))
    books = Codebooks(encoder, (normal(5, 4), normal(7, 4)), (abs(normal(5)), abs(normal(7))))
    books.save(tmp_path)
    vectors = normal(40, 6)
    for row, codes in zip(vectors, Codebooks.open(tmp_path).quantise(vectors), strict=True):
        residual = (
            np.maximum(row @ encoder[0].weight + encoder[0].bias, 0) @ encoder[1].weight + encoder[1].bias
        )
        for book, price, code in zip(books.levels, books.prices, codes, strict=True):
            assert code == (np.linalg.norm(residual - book, axis=1) ** 2 + price).argmin()
            residual = residual - book[code]


@every
def test_semantic_identifiers_are_repeatable(quantiser: str) -> None:
    assert np.array_equal(made_by(quantiser).codes, made(quantiser, clustered(400), (8, 16)).codes)


def test_the_length_of_vectors_does_not_matter() -> None:
    short = semantic_identifiers(clustered(400) * np.float32(2.0**-30), (8, 16), seed=0)
    assert np.array_equal(short.codes, made_by("kmeans").codes)


def lopsided(items: int = 1000) -> np.ndarray:
    """Return vectors, half of them in one dense place, the others far apart: k-means gives those a code each."""
    rng = np.random.default_rng(1)
    spread = np.where(np.arange(items) % 2, 0.1, 1.0)[:, None]
    return (rng.normal(size=(items, 24)) * spread).astype(np.float32)


def distortion(vectors: np.ndarray, book: np.ndarray, code: np.ndarray) -> float:
    return float(((vectors - book[code]) ** 2).sum())


@pytest.mark.parametrize("capacity", [1.0, 2.0])
def test_balanced_codes_keep_to_their_limit_at_little_cost(capacity: float) -> None:
    vectors = lopsided()
    plain = kmeans.fit(vectors, [32], np.inf, 0, components=24)
    alone = plain.quantise(vectors)[:, 0]
    assert np.bincount(alone).max() > 10 * len(vectors) / 32  # what is to be mended
    residual = plain.encode(vectors)
    book, prices = balance(residual, plain.levels[0], capacity)
    code = costs(residual, book, prices).argmin(axis=1)
    used = np.bincount(code, minlength=32)
    assert used.max() <= 1.25 * capacity * len(vectors) / 32
    assert used.min() > 0
    assert (prices >= 0).all()
    assert (used[prices > 0] > 0.8 * capacity * len(vectors) / 32).all()  # only full codes have a price
    assert distortion(residual, book, code) < 1.2 * distortion(residual, plain.levels[0], alone)


def test_dead_codes_come_to_life() -> None:
    vectors = clustered(400)
    book = np.vstack([vectors[:7], np.full((1, 16), 1000, np.float32)])  # nothing is near the last one
    assert np.bincount(costs(vectors, book, np.zeros(8, np.float32)).argmin(axis=1), minlength=8)[7] == 0
    moved, prices = balance(vectors, book, 2.0)
    assert np.bincount(costs(vectors, moved, prices).argmin(axis=1), minlength=8).tolist() == [50] * 8


def test_fewer_vectors_than_codes_have_a_code_each() -> None:
    """Most codes are dead then, more than there are vectors."""
    vectors = clustered(20)
    moved, prices = balance(vectors, np.repeat(vectors[:1], 64, axis=0), 2.0)
    code = costs(vectors, moved, prices).argmin(axis=1)
    assert len(set(code.tolist())) == 20
    assert distortion(vectors, moved, code) < 1e-6
    assert {tuple(row) for row in moved.tolist()} == {tuple(row) for row in vectors.tolist()}


def test_without_a_limit_codes_stay_as_they_are_and_the_nearest_one_names() -> None:
    vectors = lopsided(300)
    book = vectors[:8]
    same, prices = balance(vectors, book, np.inf)
    assert same is book
    assert not prices.any()


@every
def test_a_level_of_semantic_identifiers_has_no_dead_and_no_crowded_code(quantiser: str) -> None:
    codes = made(quantiser, lopsided(), (16, 16), capacity=1.5).codes
    for level in range(2):
        used = np.bincount(codes[:, level], minlength=16)
        assert used.min() > 0
        assert used.max() <= 1.25 * 1.5 * 1000 / 16


@given(st.lists(st.floats(1e-3, 1e3), min_size=1, max_size=12), st.floats(0.5, 40))
@settings(max_examples=100, deadline=None)
def test_water_filling_spends_all_bits_on_the_largest_components(variance: list[float], bits: float) -> None:
    ordered = np.sort(np.array(variance))[::-1]
    k = filled(ordered, bits)

    def level(count: int) -> float:
        return float(2 ** ((np.log2(ordered[:count]).sum() - 2 * bits) / count))

    theta = level(k)
    spent = 0.5 * np.log2(ordered[:k] / theta)
    assert spent.sum() == pytest.approx(bits)
    assert (spent > -1e-9).all()  # each that is kept gets bits
    assert (ordered[k:] <= theta * (1 + 1e-9)).all()  # and no other would


def test_large_catalogues_are_fitted_on_a_sample_and_named_as_a_whole() -> None:
    vectors = clustered(4000)
    assert len(sample(vectors, (4, 8), 0)) == 8 * 256
    identifiers = semantic_identifiers(vectors, (4, 8))
    assert len(np.unique(identifiers.codes, axis=0)) == 4000
    for cluster in range(8):
        assert len(set(identifiers.codes[np.arange(4000) % 8 == cluster, 0].tolist())) == 1


def test_items_with_one_embedding_are_told_apart_by_the_last_level() -> None:
    identifiers = semantic_identifiers(np.ones((5, 4), np.float32), (4, 4))
    assert identifiers.codes[:, -1].tolist() == [0, 1, 2, 3, 4]


def test_embeddings_that_are_not_finite_are_refused_by_row() -> None:
    vectors = clustered(20)
    vectors[7, 3] = np.nan
    with pytest.raises(IdentifierError, match="row 8"):
        semantic_identifiers(vectors)


def test_more_items_than_the_codebooks_can_name_are_refused_by_row() -> None:
    vectors = np.zeros((COLLISION_LIMIT + 1, 2), np.float32)
    with pytest.raises(IdentifierError, match=r"codebooks of 1 codes .* name 4096 items; row 4097 and those"):
        semantic_identifiers(vectors, (1,))
    with pytest.raises(IdentifierError, match=r"4097 items share one identifier prefix .* at item row 4097"):
        semantic_identifiers(vectors, (4,))


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


def test_auto_is_atomic_for_few_items_and_semantic_for_many(monkeypatch: pytest.MonkeyPatch) -> None:
    items = ItemsToName([f"title {k}" for k in range(30)], clustered(30), None)  # type: ignore[arg-type]
    chosen = TrainConfig().for_scheme
    few = load_scheme("auto").identifiers(items, chosen)
    monkeypatch.setattr(auto, "MOST_ATOMIC", 29)
    many = load_scheme("auto").identifiers(items, chosen)
    assert (few.scheme, many.scheme) == ("atomic", "semantic")
    for made in (few, many):
        assert len(np.unique(made.codes, axis=0)) == 30
        assert made.codes.shape[1] <= load_scheme("auto").levels(chosen)
