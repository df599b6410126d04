"""Conflict of two tasks: ρ = 1 − cos of their gradients."""

from __future__ import annotations

import copy
import math

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from support.problems import network, regression
from torch import Tensor, nn

from gems import GEMS, conflict, measure_conflict, plain_gradients


def random(*shape: int, seed: int = 0) -> Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed))


def test_aligned_orthogonal_and_opposed() -> None:
    gradient = random(4, 5)
    assert conflict(gradient, 3 * gradient) == pytest.approx(0, abs=1e-7)
    assert conflict(gradient, -0.1 * gradient) == pytest.approx(2, abs=1e-7)
    orthogonal = random(4, 5, seed=1)
    orthogonal -= (orthogonal * gradient).sum() / gradient.square().sum() * gradient
    assert conflict(gradient, orthogonal) == pytest.approx(1, abs=1e-6)
    assert conflict(torch.eye(2), torch.tensor([[1.0, 0.0], [0.0, -1.0]])) == 1


def test_a_zero_gradient_has_no_direction() -> None:
    assert math.isnan(conflict(torch.zeros(3, 2), random(3, 2)))
    assert math.isnan(conflict(random(3, 2), torch.zeros(3, 2)))


@settings(max_examples=80, deadline=None)
@given(
    st.integers(1, 30),
    st.integers(0, 10**6),
    st.floats(1e-15, 1e15),
    st.floats(1e-15, 1e15),
    st.sampled_from([torch.float32, torch.float64]),
)
def test_sizes_do_not_matter_and_it_is_symmetric(
    size: int, seed: int, one: float, other: float, dtype: torch.dtype
) -> None:
    a, b = random(size, seed=seed).to(dtype), random(size, seed=seed + 1).to(dtype)
    value = conflict(a, b)
    assert -1e-9 <= value <= 2 + 1e-9
    assert conflict(one * a, other * b) == pytest.approx(value, abs=1e-5)
    assert conflict(b, a) == pytest.approx(value, abs=1e-12)
    assert conflict(a, -b) == pytest.approx(2 - value, abs=1e-12)


def test_low_precision_is_measured_in_high() -> None:
    a = torch.full((100_000,), 1e-3, dtype=torch.bfloat16)
    assert conflict(a, a) == pytest.approx(0, abs=1e-12)


def test_it_is_what_autograd_says() -> None:
    model = network(torch.float64)
    weights = {name: p for name, p in model.named_parameters() if p.ndim == 2}
    assert set(weights) == {"0.weight", "3.weight"}
    found = measure_conflict(regression(model, 0, torch.float64), weights)
    separate = []
    for task in ("search", "recommendation"):
        clone = copy.deepcopy(model)
        regression(clone, 0, torch.float64)[task].backward()
        separate.append(
            {name: p.grad.flatten() for name, p in clone.named_parameters() if p.grad is not None}
        )
    for name in weights:
        a, b = separate[0][name], separate[1][name]
        assert found[name] == pytest.approx(1 - float(torch.cosine_similarity(a, b, dim=0)), abs=1e-9)
        assert 0.01 < found[name] < 1.99


def test_measuring_leaves_gradients_and_the_optimizer_alone() -> None:
    model = network()
    optimizer = GEMS(model, ("search", "recommendation"), lr=1e-2, rank=3, refresh_every=4, stagger=1)
    for step in range(2):
        optimizer.backward(regression(model, step))
        optimizer.step()
    optimizer.backward(regression(model, 2))  # a part of a step, before the rest of it
    held = [weight.subspaces.projected.clone() for weight in optimizer.weights]
    plain = [p.grad.clone() for p in model.parameters() if p.grad is not None]
    alignment = {task: float(dot) for task, dot in optimizer._held.alignment.items()}
    assert len(plain) == 3  # norm and bias
    assert all(bool(kept.any()) for kept in held)
    with plain_gradients():
        losses = regression(model, 7)
    found = measure_conflict(losses, {weight.name: weight.parts[0].parameter for weight in optimizer.weights})
    assert all(0 < value < 2 for value in found.values())
    assert all(
        torch.equal(w.subspaces.projected, kept) for w, kept in zip(optimizer.weights, held, strict=True)
    )
    assert all(weight.parts[0].parameter.grad is None and not weight.full for weight in optimizer.weights)
    now = [p.grad for p in model.parameters() if p.grad is not None]
    assert all(torch.equal(a, b) for a, b in zip(now, plain, strict=True))
    assert {task: float(dot) for task, dot in optimizer._held.alignment.items()} == alignment
    optimizer.zero_grad()
    optimizer.backward(losses)  # the graph is still there
    optimizer.step()


def test_without_gradients_before_there_are_none_after() -> None:
    model = network()
    measure_conflict(regression(model, 0), dict(model.named_parameters()))
    assert all(p.grad is None for p in model.parameters())


def test_three_tasks_give_the_mean_of_the_pairs() -> None:
    layer = nn.Linear(6, 4)
    x = random(9, 6)
    targets = [random(9, 4, seed=seed) for seed in (1, 2, 3)]
    losses = {f"task {k}": (layer(x) - target).square().mean() for k, target in enumerate(targets)}
    weights = {"weight": layer.weight}
    pairs = [
        measure_conflict({a: losses[a], b: losses[b]}, weights)["weight"]
        for a, b in (("task 0", "task 1"), ("task 0", "task 2"), ("task 1", "task 2"))
    ]
    assert measure_conflict(losses, weights)["weight"] == pytest.approx(sum(pairs) / 3, abs=1e-12)
    assert max(pairs) - min(pairs) > 1e-3


def test_a_weight_that_a_loss_does_not_reach_gives_nan() -> None:
    one, other = nn.Linear(3, 2), nn.Linear(3, 2)
    x = random(5, 3)
    found = measure_conflict(
        {"a": one(x).sum(), "b": (one(x) * other(x)).sum()}, {"one": one.weight, "other": other.weight}
    )
    assert math.isnan(found["other"])
    assert 0 <= found["one"] <= 2


def test_one_task_has_nobody_to_disagree_with() -> None:
    layer = nn.Linear(3, 2)
    assert math.isnan(measure_conflict({"a": layer(random(5, 3)).sum()}, {"w": layer.weight})["w"])
