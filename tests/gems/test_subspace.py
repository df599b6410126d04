"""Bases and moments: orthonormal, outside excluded spans, and correct after a change of basis."""

from __future__ import annotations

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from gems.weights.subspace import Subspaces, complement_basis, leading_directions, transport_moments

BETAS = (0.9, 0.98)


def generator(seed: int = 0) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


def orthonormal(n: int, k: int, seed: int = 0, dtype: torch.dtype = torch.float32) -> Tensor:
    return torch.linalg.qr(torch.randn(n, k, generator=generator(seed), dtype=torch.float64))[0].to(dtype)


def gram_error(basis: Tensor) -> float:
    return float((basis.T @ basis - torch.eye(basis.shape[1], dtype=basis.dtype)).abs().max())


@settings(max_examples=60, deadline=None)
@given(st.integers(2, 40), st.data())
def test_a_complement_basis_is_complete_whatever_it_starts_from(n: int, data: st.DataObject) -> None:
    known = data.draw(st.integers(0, n - 1))
    width = data.draw(st.integers(1, n - known))
    kind = data.draw(st.sampled_from(["random", "zero", "inside", "repeated"]))
    outside = orthonormal(n, known)
    columns = torch.randn(n, width, generator=generator(1))
    if kind == "zero":
        columns = torch.zeros(n, width)
    elif kind == "inside":  # nothing is left of it once the known directions are removed
        columns = outside @ torch.randn(known, width, generator=generator(2))
    elif kind == "repeated":
        columns = columns[:, :1].repeat(1, width)
    basis = complement_basis(columns, [outside], generator(3))
    assert basis.shape == (n, width)
    assert gram_error(basis) < 2e-6
    assert known == 0 or float((outside.T @ basis).abs().max()) < 2e-6


@pytest.mark.parametrize(
    ("m", "n", "rank", "known"), [(20, 30, 5, 0), (20, 30, 5, 9), (40, 12, 12, 0), (6, 30, 6, 20)]
)
def test_leading_directions_are_those_of_the_svd(m: int, n: int, rank: int, known: int) -> None:
    left, right = orthonormal(m, min(m, n), 1), orthonormal(n, min(m, n), 2)
    gradient = left @ torch.diag(0.7 ** torch.arange(min(m, n))) @ right.T
    outside = orthonormal(n, known, 3)
    free = gradient - gradient @ outside @ outside.T
    expected = torch.linalg.svd(free)[2][:rank].T
    found = leading_directions(gradient, rank, outside=[outside], iterations=4, generator=generator())
    assert gram_error(found) < 2e-6
    best = float((free @ expected).square().sum())
    assert float((gradient @ found).square().sum()) > (1 - 1e-4) * best
    assert known == 0 or float((outside.T @ found).abs().max()) < 2e-6


def test_a_warm_start_follows_a_gradient_that_turns() -> None:
    left, right = orthonormal(30, 24, 1), orthonormal(24, 24, 2)
    turn = torch.linalg.matrix_exp(0.05 * (lambda a: a - a.T)(torch.randn(24, 24, generator=generator(4))))
    strengths = torch.diag(0.8 ** torch.arange(24.0))
    basis = leading_directions(left @ strengths @ right.T, 6, generator=generator())
    for _ in range(5):
        right = turn @ right
        gradient = left @ strengths @ right.T
        basis = leading_directions(
            gradient, 6, start=basis, iterations=1, oversampling=4, generator=generator()
        )
        best = float(torch.linalg.svdvals(gradient)[:6].square().sum())
        assert float((gradient @ basis).square().sum()) > 0.99 * best


def test_a_steep_spectrum_keeps_its_weak_directions() -> None:
    """A refresh of the same gradient finds the same subspace, down to σ = 1e-4 σ₁: Adam uses all directions equally."""
    left, right = orthonormal(60, 48, 1), orthonormal(48, 48, 2)
    gradient = left @ torch.diag(0.8 ** torch.arange(48.0)) @ right.T
    cold = leading_directions(gradient, 40, iterations=3, generator=generator(3))
    warm = leading_directions(gradient, 40, start=cold, iterations=1, generator=generator(4))
    assert float((cold.T @ warm).square().sum()) > 0.98 * 40
    assert float((right[:, :40].T @ warm).square().sum()) > 0.98 * 40


def test_a_tiny_or_zero_gradient_still_gives_a_basis() -> None:
    for scale in (1e-30, 0.0):
        gradient = scale * torch.randn(8, 10, generator=generator())
        assert gram_error(leading_directions(gradient, 4, generator=generator())) < 2e-6


def test_moments_of_a_steady_gradient_move_as_if_the_new_basis_had_always_been_there() -> None:
    gradient = torch.randn(7, 9, generator=generator(), dtype=torch.float64)
    old, new = (orthonormal(9, 9, seed, torch.float64) for seed in (1, 2))
    moments = {}
    for name, basis in (("old", old), ("new", new)):
        spaces = Subspaces((7, 9), torch.zeros(0, dtype=torch.float64), {"shared": 9})
        spaces.basis[:] = basis
        for _ in range(5):
            spaces.projected[:] = gradient @ basis
            spaces.adam("shared", BETAS)
        moments[name] = spaces
    first, second = transport_moments(moments["old"].first, moments["old"].second, old.T @ new, 5, BETAS)
    assert torch.allclose(first, moments["new"].first)
    assert torch.allclose(second, moments["new"].second)


def test_steps_into_directions_without_history_are_not_longer() -> None:
    """Pure noise, then a completely new basis: the root mean square of N stays about the same."""
    rng = generator()
    spaces = Subspaces((50, 40), torch.zeros(0), {"shared": 8})
    frame = orthonormal(40, 40, 1)
    spaces.basis[:] = frame[:, :8]
    sizes = []
    for step in range(240):
        if step == 200:
            spaces.replace_basis(
                "shared", frame[:, 8:16].contiguous(), frame[:, :8].T @ frame[:, 8:16], BETAS
            )
        spaces.projected[:] = torch.randn(50, 40, generator=rng) @ spaces.basis
        spaces.adam("shared", BETAS)
        sizes.append(float(spaces.direction("shared", BETAS, 1e-8).square().mean().sqrt()))
    usual = sum(sizes[150:200]) / 50
    assert max(sizes[200:]) < 1.3 * usual


@settings(max_examples=40, deadline=None)
@given(st.integers(1, 50), st.integers(0, 1000))
def test_transport_keeps_second_moments_positive_and_nothing_when_nothing_turns(
    count: int, seed: int
) -> None:
    spaces = Subspaces((4, 6), torch.zeros(0), {"shared": 6})
    for _ in range(count):
        spaces.projected[:] = torch.randn(4, 6, generator=generator(seed))
        spaces.adam("shared", BETAS)
    turned = transport_moments(spaces.first, spaces.second, orthonormal(6, 6, seed), count, BETAS)
    assert float(turned[1].min()) >= 0
    same = transport_moments(spaces.first, spaces.second, torch.eye(6), count, BETAS)
    assert torch.allclose(same[0], spaces.first)
    assert torch.allclose(same[1], spaces.second, atol=1e-6)
