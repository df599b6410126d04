"""Strengths and limits of the parts of the method, on small least-squares problems.

Every method gets the best of the same learning rates. "Equal state" means that the shared subspace alone has twice the
rank: then it has as many basis vectors and moments as a shared basis of rank r and two task bases of r/2.
"""

from __future__ import annotations

import functools
import statistics

import pytest
import torch
from torch import Tensor, nn

from gems import GEMS

F64 = torch.float64
RATES = (0.03, 0.1, 0.3)
SEEDS = range(3)


def turning(seed: int, *, transport: bool, turn: float, rate: float = 0.03, every: int = 5) -> list[float]:
    """Return the losses of a quadratic whose four steep input directions turn at each refresh, without randomness."""
    rng = torch.Generator().manual_seed(seed)
    n, m, rank = 24, 16, 4
    goal = torch.randn(m, n, generator=rng, dtype=F64)
    frame = torch.linalg.qr(torch.randn(n, n, generator=rng, dtype=F64))[0]
    skew = torch.randn(n, n, generator=rng, dtype=F64)
    skew = skew - skew.T
    rotation = torch.linalg.matrix_exp(turn * skew / torch.linalg.matrix_norm(skew, 2))
    steepness = torch.full((n,), 0.05, dtype=F64)
    steepness[:rank] = torch.linspace(3, 1, rank, dtype=F64)
    layer = nn.Linear(n, m, bias=False, dtype=F64)
    nn.init.zeros_(layer.weight)
    optimizer = GEMS(layer, lr=rate, rank=rank, refresh_every=every, stagger=1, transport=transport)
    losses = []
    for step in range(150):
        if step and step % every == 0:
            frame = rotation @ frame
        loss = (((layer.weight - goal) @ frame) * steepness).square().mean()
        losses.append(loss.item())
        optimizer.backward(loss)
        optimizer.step()
    return losses


@pytest.mark.parametrize("every", [5, 10])
def test_transported_moments_beat_stale_ones_where_the_directions_turn(every: int) -> None:
    moved, stale = (
        [turning(seed, transport=transport, turn=0.8, every=every, rate=0.1) for seed in range(4)]
        for transport in (True, False)
    )
    assert sum(map(sum, moved)) < 0.9 * sum(map(sum, stale))
    assert sum(sum(run[-20:]) for run in moved) < 0.9 * sum(sum(run[-20:]) for run in stale)


def test_transport_does_no_harm_where_nothing_turns() -> None:
    for seed in range(2):
        moved = turning(seed, transport=True, turn=0.0)
        stale = turning(seed, transport=False, turn=0.0)
        assert statistics.mean(moved) < 1.02 * statistics.mean(stale), seed


def two_tasks(
    seed: int, tasks: bool, rank: int, rate: float, size: float, together: bool, gate: str
) -> tuple[float, float]:
    """Fit two noisy linear maps with one weight.

    size: weight of the first task's loss; the second task has weight 1.
    together: whether both tasks have the same eight input directions (with different outputs) instead of eight each.
    Returns the final summed loss as a share of the first one, and the mean of this share over the tasks.
    """
    rng = torch.Generator().manual_seed(seed)
    n, m, k = 18, 12, 8
    frame = torch.linalg.qr(torch.randn(n, n, generator=rng, dtype=F64))[0]
    strengths = torch.linspace(1.5, 0.5, k, dtype=F64)
    maps = [
        frame[:, :k] * strengths,
        frame[:, :k] * strengths if together else frame[:, k : 2 * k] * strengths,
    ]
    goals = [torch.randn(m, n, generator=rng, dtype=F64) for _ in range(2)]
    weights = (size, 1.0)
    layer = nn.Linear(n, m, bias=False, dtype=F64)
    nn.init.zeros_(layer.weight)
    names = ("a", "b")
    optimizer = GEMS(
        layer, names if tasks else (), lr=rate, rank=rank, refresh_every=10, stagger=1, gate=gate, joint=False
    )

    def remaining() -> Tensor:
        with torch.no_grad():
            return torch.stack(
                [
                    w * ((layer.weight - goal) @ into).square().sum()
                    for w, goal, into in zip(weights, goals, maps, strict=True)
                ]
            )

    first = remaining()
    for _ in range(100):
        losses = {}
        for name, weight, goal, into in zip(names, weights, goals, maps, strict=True):
            inputs = torch.randn(32, k, generator=rng, dtype=F64) @ into.T
            outputs = inputs @ goal.T + 0.3 * torch.randn(32, m, generator=rng, dtype=F64)
            losses[name] = weight * (layer(inputs) - outputs).square().mean()
        optimizer.backward(losses if tasks else losses["a"] + losses["b"])
        optimizer.step()
    last = remaining()
    return float(last.sum() / first.sum()), float((last / first).mean())


@functools.cache
def left(method: str, size: float, *, together: bool = False, gate: str = "uniform") -> tuple[float, float]:
    """Return the shares of the summed loss and of the mean task loss, each at its best rate, averaged over seeds."""
    tasks, rank = {"gems": (True, 4), "shared": (False, 4), "equal state": (False, 8)}[method]
    means = []
    for rate in RATES:
        found = [two_tasks(seed, tasks, rank, rate, size, together, gate) for seed in SEEDS]
        means.append([statistics.mean(values) for values in zip(*found, strict=True)])
    return min(mean[0] for mean in means), min(mean[1] for mean in means)


@pytest.mark.parametrize("gate", ["uniform", "prior", "hypergradient"])
def test_task_subspaces_serve_a_task_whose_gradients_are_small(gate: str) -> None:
    """The small task's directions never enter the joint basis, even if this basis is as large as the memory allows."""
    summed, each = left("gems", 100, gate=gate)
    for other in ("shared", "equal state"):
        their_summed, their_each = left(other, 100)
        assert summed < 0.8 * their_summed, other
        assert each < 0.4 * their_each, other


def test_tasks_of_equal_size_gain_by_rank_only() -> None:
    """Separate tasks of equal size: GEMS beats a shared subspace of equal rank, and loses to one of equal state."""
    summed, each = left("gems", 1)
    assert summed < 0.6 * left("shared", 1)[0]
    assert each < 0.6 * left("shared", 1)[1]
    assert left("equal state", 1)[0] < summed


def test_no_subspace_resolves_tasks_that_want_other_outputs_of_the_same_inputs() -> None:
    """Equal inputs, equal size: half of the loss cannot be removed, and every method leaves about this half."""
    for method in ("gems", "shared", "equal state"):
        summed, each = left(method, 1, together=True)
        assert 0.4 < summed < 0.6, method
        assert 0.4 < each < 0.6, method


def test_on_the_same_inputs_the_small_task_pulls_against_the_summed_loss() -> None:
    """Adam makes both tasks' own updates equally large, so that an even gate favours the small task too much."""
    summed = left("gems", 100, together=True)[0]
    assert summed > 1.05 * left("equal state", 100, together=True)[0]
    assert left("gems", 100, together=True, gate="hypergradient")[0] < summed  # learned: back to the sum
