"""The soft null space: the matrix S against its formula, the bound on what changes for general text, and its limits."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from support.problems import TASKS, language_model, token_losses
from torch import Tensor, nn

from gems import GEMS, GemsError, collect_knowledge
from gems.weights.shrinkage import Shrinkage


def second_moment(n: int, seed: int = 0) -> Tensor:
    """A covariance with eigenvalues over five orders of magnitude."""
    rng = torch.Generator().manual_seed(seed)
    inputs = torch.randn(4 * n, n, generator=rng, dtype=torch.float64) * torch.logspace(0, -2.5, n).double()
    mixed = inputs @ torch.linalg.qr(torch.randn(n, n, generator=rng, dtype=torch.float64))[0]
    return mixed.T @ mixed


def spectrum(moment: Tensor, kept: int) -> tuple[Tensor, Tensor]:
    values, vectors = torch.linalg.eigh(moment)
    return vectors.flip(1)[:, :kept], values.flip(0)


@settings(max_examples=40, deadline=None)
@given(st.integers(2, 24), st.floats(1e-3, 1e3), st.integers(0, 99))
def test_it_is_the_inverse_root_of_the_formula(n: int, mu: float, seed: int) -> None:
    moment = second_moment(n, seed)
    shrinkage = Shrinkage(*spectrum(moment, n), mu)
    values, vectors = torch.linalg.eigh(torch.eye(n, dtype=torch.float64) + moment / mu)
    expected = vectors @ torch.diag(values.rsqrt()) @ vectors.T
    rows = torch.randn(5, n, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)
    assert torch.allclose(shrinkage.apply(rows), rows @ expected, atol=1e-10)
    assert torch.allclose(shrinkage.undo(shrinkage.apply(rows)), rows, atol=1e-8)


@settings(max_examples=40, deadline=None)
@given(st.integers(4, 24), st.floats(0.1, 0.9), st.floats(1e-3, 1e3), st.integers(0, 99))
def test_the_bound_holds_however_many_directions_are_kept(n: int, share: float, mu: float, seed: int) -> None:
    """Check S K S ≼ μ I by its largest eigenvalue."""
    moment = second_moment(n, seed)
    shrinkage = Shrinkage(*spectrum(moment, max(1, round(share * n))), mu)
    small = shrinkage.apply(torch.eye(n, dtype=torch.float64))
    assert float(torch.linalg.eigvalsh(small @ moment @ small).max()) <= mu * (1 + 1e-9)


def tuned(softness: float | None, steps: int = 12, **others: Any) -> tuple[GEMS, Tensor, Tensor]:
    """Return the optimizer of a square layer, its change, and the inputs that it knows."""
    torch.manual_seed(0)
    layer = nn.Linear(16, 16, bias=False, dtype=torch.float64)
    known = torch.randn(300, 16, dtype=torch.float64) * torch.logspace(1, -1.5, 16).double()
    knowledge = collect_knowledge(layer, [known], {"weight": layer}, keep=0.5)
    start = layer.weight.detach().clone()
    chosen: dict[str, Any] = {"lr": 1e-3, "rank": 4, "refresh_every": 4, "stagger": 1} | others
    optimizer = GEMS(layer, knowledge=knowledge if softness else None, softness=softness, **chosen)
    for step in range(steps):
        x = torch.randn(20, 16, generator=torch.Generator().manual_seed(step), dtype=torch.float64)
        optimizer.backward((layer(x) - x.flip(1)).square().mean())
        optimizer.step()
    return optimizer, layer.weight.detach() - start, known


@pytest.mark.parametrize("softness", [1e-3, 0.1, 10.0])
def test_the_answers_to_general_text_change_within_the_bound(softness: float) -> None:
    """Check Σ ‖Δ x‖² ≤ μ η² ‖N‖² of a first step."""
    optimizer, change, known = tuned(softness, steps=1)
    mu = softness * float((known.T @ known).trace()) / 16
    update = optimizer.weights[0].subspaces.direction("shared", (0.9, 0.98), 1e-8)
    moved = float((known @ change.T).square().sum())
    bound = mu * 1e-6 * float(update.square().sum())
    assert 0 < moved <= bound * (1 + 1e-6)


def test_a_softer_null_space_lets_more_change() -> None:
    moved = []
    for softness in (1e-4, 1e-2, 1.0):
        _, change, known = tuned(softness)
        moved.append(float((known @ change.T).norm() / change.norm()))
    assert moved == sorted(moved)
    assert moved[0] < 0.2 * moved[-1]


def test_the_softest_is_none_at_all() -> None:
    _, soft, _ = tuned(1e12)
    _, free, _ = tuned(None)
    assert torch.allclose(soft, free, rtol=0, atol=1e-8)


def test_a_language_model_learns_and_keeps_ranks_and_deflation() -> None:
    model, linears, knowledge = language_model()
    optimizer = GEMS(
        model, TASKS, lr=1e-2, rank_share=0.25, linears=linears, knowledge=knowledge, softness=0.1,
        refresh_every=5, stagger=2,
    )  # fmt: skip
    losses = []
    for step in range(30):
        found = token_losses(model, step % 3)
        optimizer.backward(found)
        optimizer.step()
        losses.append(float(sum(found.values()).detach()))  # type: ignore[union-attr]
    assert losses[-1] < 0.9 * losses[0]
    for weight in optimizer.weights:
        m, n = weight.parts[0].matrix.shape
        assert optimizer.ranks[weight.name]["shared"] == round(0.25 * min(m, n))  # knowledge takes no room
        assert not weight.on_outputs


@pytest.mark.parametrize("softness", [0.0, -1.0, float("nan"), float("inf")])
def test_it_must_be_a_positive_number(softness: float) -> None:
    with pytest.raises(GemsError, match="softness"):
        GEMS(nn.Linear(4, 4), lr=1e-3, rank=1, softness=softness)


def test_a_site_whose_inputs_are_zero_is_not_shortened() -> None:
    layer = nn.Linear(6, 6, bias=False)
    knowledge = collect_knowledge(layer, [torch.zeros(9, 6)], {"weight": layer})
    optimizer = GEMS(layer, lr=1e-2, rank=2, knowledge=knowledge, softness=0.1)
    before = layer.weight.detach().clone()
    optimizer.backward(layer(torch.ones(3, 6)).square().sum())
    optimizer.step()
    assert bool(torch.isfinite(layer.weight).all())
    assert not torch.equal(layer.weight, before)
