"""The hypergradient of the gate against finite differences, and what must not change it."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from support.problems import TASKS, network, regression, train
from torch import Tensor, nn

from gems import GEMS

BETAS = (0.9, 0.98)
RATE, SCALE = 1e-3, 2.0


def trained(model: nn.Module, **settings: Any) -> GEMS:
    size = {} if "rank_share" in settings else {"rank": 3}
    optimizer = GEMS(
        model, TASKS, lr=RATE, scale=SCALE, refresh_every=50, stagger=1, gate="hypergradient", **size | settings
    )  # fmt: skip
    for _ in train(model, optimizer, range(3), torch.float64):
        pass
    return optimizer


def last_update(optimizer: GEMS, task: str, *, rank_scaling: bool) -> list[Tensor]:
    """Return N_t V_tᵀ of the last update of each weight, computed again from the moments."""
    found = []
    for weight in optimizer.weights:
        basis = weight.subspaces.basis[:, weight.subspaces.columns[task]]
        direction = weight.subspaces.direction(task, BETAS, 1e-8) @ basis.T
        if rank_scaling:
            direction = direction * (basis.shape[0] / basis.shape[1]) ** 0.5
        found.append(weight.parts[0].seen(direction))
    return found


@pytest.mark.parametrize(
    "settings",
    [{}, {"rank_scaling": True}, {"rank_scaling": True, "rank_share": 0.3}, {"relative": True}],
)
def test_it_is_that_of_finite_differences(settings: dict[str, Any]) -> None:
    """Check dL_{t+1}/dα_i = −η s Σ ⟨g_{t+1} V_i, N_i⟩ by a small change of α in the last update."""
    model = network(torch.float64)
    optimizer = trained(model, **settings)
    relative = settings.get("relative", False)
    directions = {
        task: [
            each * (weight._factors[task] if relative else 1.0)
            for weight, each in zip(
                optimizer.weights,
                last_update(optimizer, task, rank_scaling=settings.get("rank_scaling", False)),
                strict=True,
            )
        ]
        for task in TASKS
    }

    def loss_at(task: str, change: float) -> float:
        with torch.no_grad():
            for weight, direction in zip(optimizer.weights, directions[task], strict=True):
                weight.parts[0].parameter.sub_(RATE * SCALE * change * direction)
        value = float(sum(regression(model, 99, torch.float64).values()))
        with torch.no_grad():
            for weight, direction in zip(optimizer.weights, directions[task], strict=True):
                weight.parts[0].parameter.add_(RATE * SCALE * change * direction)
        return value

    expected = {task: (loss_at(task, 1e-3) - loss_at(task, -1e-3)) / 2e-3 for task in TASKS}
    optimizer.backward(regression(model, 99, torch.float64))
    for task in TASKS:
        dot = optimizer._held.alignment[task]
        assert -RATE * SCALE * float(dot) == pytest.approx(expected[task], rel=1e-5)
    optimizer.step()
    for task in TASKS:  # and what the gate hears is that, normalised
        assert optimizer.sensitivity[task] * expected[task] > 0
    assert optimizer.sensitivity["search"] / optimizer.sensitivity["recommendation"] == pytest.approx(
        expected["search"] / expected["recommendation"], rel=1e-5
    )


def test_it_is_divided_by_the_lengths_of_the_projected_gradient_and_of_the_updates() -> None:
    model = network(torch.float64)
    optimizer = trained(model)
    updates = [each for task in TASKS for each in last_update(optimizer, task, rank_scaling=False)]
    optimizer.backward(regression(model, 99, torch.float64))
    dots = {task: float(dot) for task, dot in optimizer._held.alignment.items()}
    shared = torch.cat(
        [w.subspaces.projected[:, w.subspaces.columns["shared"]].flatten() for w in optimizer.weights]
    )
    length = float(shared.norm()) * float(torch.stack([each.norm() for each in updates]).norm())
    optimizer.step()
    for task in TASKS:
        assert optimizer.sensitivity[task] == pytest.approx(-dots[task] / length, rel=1e-9)


def test_a_plain_parameter_does_not_change_it() -> None:
    """The divisor is the length of the projected gradient: an unrelated parameter may have any gradient."""
    found = []
    for factor in (1.0, 1000.0):
        model = network(torch.float64)
        model.extra = nn.Parameter(torch.ones(3, dtype=torch.float64))  # type: ignore[assignment]
        optimizer = GEMS(model, TASKS, lr=RATE, rank=3, refresh_every=50, stagger=1, gate="hypergradient")
        for step in range(4):
            losses = regression(model, step, torch.float64)
            losses["search"] = (
                losses["search"] + factor * model.extra.sum() - factor * model.extra.detach().sum()
            )  # type: ignore[operator,union-attr]
            optimizer.backward(losses)
            optimizer.step()
        found.append([optimizer.sensitivity[task] for task in TASKS])
    assert found[0] == pytest.approx(found[1], rel=1e-6)
    assert all(found[0])


def test_shortened_updates_are_heard_at_their_length() -> None:
    """A growth limit made the last update shorter, so its parts could help less."""
    dots = []
    for limit in (None, 0.5):
        model = network(torch.float64)
        optimizer = GEMS(
            model,
            TASKS,
            lr=1e-12,
            rank=3,
            refresh_every=50,
            stagger=1,
            growth_limit=limit,
            gate="hypergradient",
        )
        for _ in train(model, optimizer, range(2), torch.float64):
            pass
        optimizer.backward(regression(model, 99, torch.float64))
        dots.append([float(dot) for dot in optimizer._held.alignment.values()])
    assert all(0 < abs(short) < abs(whole) for whole, short in zip(*dots, strict=True))
