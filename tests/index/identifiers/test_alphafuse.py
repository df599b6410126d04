"""AlphaFuse: properties of the spaces, frozen parts, and refused input."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from numpy.typing import NDArray

from index.identifiers.alphafuse import (
    THRESHOLDS,
    AlphaFuseError,
    FusedVectors,
    SemanticSpace,
    random_cosines,
)


def language_vectors(
    count: int = 400, width: int = 24, seed: int = 0, decay: float = 0.7
) -> NDArray[np.float32]:
    """Return vectors that are not centred, with variances that fall by `decay` per direction, in rotated directions."""
    rng = np.random.default_rng(seed)
    turn, _ = np.linalg.qr(rng.standard_normal((width, width)))
    spread = decay ** np.arange(width)
    return ((rng.standard_normal((count, width)) * np.sqrt(spread)) @ turn.T + 0.3).astype(np.float32)


@given(st.integers(0, 1000), st.sampled_from(THRESHOLDS), st.integers(12, 30))
@settings(max_examples=25, deadline=None)
def test_row_and_null_space_are_orthogonal_and_fill_the_space(
    seed: int, threshold: float, width: int
) -> None:
    vectors = language_vectors(100 + width, width, seed, decay=0.3)
    space = SemanticSpace.of(vectors, threshold=threshold)
    U, null = space.row_space, space.null_space
    assert np.allclose(U.T @ null, 0, atol=1e-10)
    assert np.allclose(U @ U.T + null @ null.T, np.eye(width), atol=1e-10)
    relative = space.singular_values / space.singular_values[0]
    assert (relative[: space.semantic] > threshold).all()
    assert (relative[space.semantic :] <= threshold).all()


def test_the_decomposition_is_that_of_the_covariance() -> None:
    vectors = language_vectors().astype(np.float64)
    space = SemanticSpace.of(vectors, semantic=5)
    rebuilt = space.directions @ np.diag(space.singular_values) @ space.directions.T
    assert np.allclose(rebuilt, np.cov(vectors.T, bias=True), atol=1e-12)


@pytest.mark.parametrize("semantic", [1, 7, 23])
def test_the_standardised_part_is_isotropic(semantic: int) -> None:
    vectors = language_vectors()
    part = SemanticSpace.of(vectors, semantic=semantic).standardised(vectors)
    assert part.shape == (len(vectors), semantic)
    assert np.allclose(part.mean(0), 0, atol=1e-4)
    assert np.allclose(np.cov(part.T, bias=True), np.eye(semantic), atol=1e-4)


def test_the_split_ignores_where_the_cloud_lies_and_how_it_is_turned() -> None:
    """Distances between standardised vectors do not change under rotation, shift and scaling of the space."""
    vectors = language_vectors().astype(np.float64)
    turn, _ = np.linalg.qr(np.random.default_rng(5).standard_normal((24, 24)))
    moved = 3.0 * vectors @ turn + 7.0
    parts = [SemanticSpace.of(v, threshold=0.05).standardised(v)[:50] for v in (vectors, moved)]
    distances = [np.linalg.norm(p[:, None] - p[None], axis=-1) for p in parts]
    assert np.allclose(*distances, atol=1e-3)


def test_training_moves_the_null_part_and_not_one_bit_of_the_frozen_one() -> None:
    vectors = language_vectors()
    torch.manual_seed(0)
    fused = FusedVectors(SemanticSpace.of(vectors, semantic=6), vectors, null=10, std=0.02)
    assert [name for name, _ in fused.named_parameters()] == ["learned"]
    before, learned = fused()[:, :6].clone(), fused.learned.detach().clone()
    optimizer = torch.optim.AdamW(fused.parameters(), lr=0.1, weight_decay=0.1)
    for _ in range(5):
        optimizer.zero_grad()
        fused().square().sum().backward()
        optimizer.step()
    assert fused().shape == (400, 16)
    assert torch.equal(fused()[:, :6], before)
    assert not torch.isclose(fused.learned, learned).any()


def test_items_outside_the_split_lie_where_the_split_puts_them() -> None:
    vectors = language_vectors()
    space = SemanticSpace.of(vectors[:300], semantic=6)
    fused = FusedVectors(space, vectors[300:], null=2, std=0.0)
    assert np.allclose(fused.frozen.numpy(), space.standardised(vectors)[300:])
    assert not fused.learned.detach().any()


@pytest.mark.parametrize(
    ("vectors", "wanted", "message"),
    [
        (language_vectors(24), {"semantic": 3}, r"24 items are too few .* 24 dimensions"),
        (np.full((50, 4), 0.5, np.float32), {"semantic": 1}, "no variance"),
        (np.zeros((50, 4), np.float32), {"threshold": 0.1}, "no variance"),
        (language_vectors(), {"threshold": 1.0}, "no row space"),
        (language_vectors(), {"threshold": 0.0}, "no null space"),
        (language_vectors(decay=1.0), {"threshold": 0.01}, "no null space"),
        (language_vectors(), {"semantic": 24}, "no null space"),
        (language_vectors(), {"semantic": 0}, "holds nothing"),
        (language_vectors(), {}, "either"),
        (language_vectors(), {"semantic": 3, "threshold": 0.1}, "either"),
        (language_vectors()[0], {"semantic": 3}, "matrix"),
    ],
)
def test_what_cannot_be_split_is_refused(
    vectors: NDArray[np.float32], wanted: dict[str, float], message: str
) -> None:
    with pytest.raises(AlphaFuseError, match=message):
        SemanticSpace.of(vectors, **wanted)


def test_vectors_that_are_not_finite_are_refused_by_row() -> None:
    for value in (np.nan, np.inf):
        vectors = language_vectors()
        vectors[17, 3] = value
        with pytest.raises(AlphaFuseError, match="first in row 17"):
            SemanticSpace.of(vectors, semantic=3)


def test_a_direction_without_variance_is_null_space_and_never_standardised() -> None:
    vectors = language_vectors()
    vectors[:, 3] = 0.25
    flat = np.linalg.qr(np.random.default_rng(1).standard_normal((24, 24)))[0]
    for each in (vectors, vectors @ flat[:, :20] @ flat[:, :20].T):
        space = SemanticSpace.of(each.astype(np.float64), threshold=1e-6)
        assert np.isfinite(space.standardised(each)).all()
    with pytest.raises(AlphaFuseError, match="vary in 20 directions only"):
        SemanticSpace.of((vectors @ flat[:, :20] @ flat[:, :20].T).astype(np.float64), semantic=22)


def test_more_null_space_than_there_is_is_refused() -> None:
    vectors = language_vectors()
    space = SemanticSpace.of(vectors, semantic=20)
    for null in (0, 5):
        with pytest.raises(AlphaFuseError, match="null space has 4 dimensions"):
            FusedVectors(space, vectors, null=null, std=0.0)
    with pytest.raises(AlphaFuseError, match="do not fit"):
        FusedVectors(space, vectors[:, :10], null=2, std=0.0)


def test_standardising_pulls_items_apart() -> None:
    vectors = language_vectors(width=60, decay=0.9) + np.float32(0.5)
    space = SemanticSpace.of(vectors, semantic=40)
    before = random_cosines(vectors, 5000)
    turned = random_cosines((vectors - space.mean) @ space.row_space, 5000)
    after = random_cosines(space.standardised(vectors), 5000)
    assert before.mean() > 0.5  # what all items have in common makes them alike
    assert abs(after.mean()) < 0.02
    assert after.std() < turned.std()


def test_cosines_are_of_different_items() -> None:
    assert np.allclose(random_cosines(np.eye(7), 500), 0)
