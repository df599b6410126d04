"""Numbers that are not finite stop a step before anything has changed."""

from __future__ import annotations

import copy
import math
from collections.abc import Callable, Mapping
from typing import Any

import pytest
import torch
from support.problems import TASKS, network, regression, train
from torch import Tensor, nn

from gems import GEMS, GemsError

Losses = Mapping[str, Tensor]


def assert_same(one: Any, other: Any) -> None:
    """Compare nested states, tensor by tensor."""
    if isinstance(one, Tensor):
        assert torch.equal(one, other) or bool((one.isnan() & other.isnan()).all())
    elif isinstance(one, Mapping):
        assert list(one) == list(other)
        for key, value in one.items():
            assert_same(value, other[key])
    elif isinstance(one, list | tuple):
        assert len(one) == len(other)
        for a, b in zip(one, other, strict=True):
            assert_same(a, b)
    else:
        assert one == other or (one != one and other != other)


class Infinite(torch.autograd.Function):
    """Infinity whose gradient is one."""

    @staticmethod
    def forward(ctx: Any, loss: Tensor) -> Tensor:
        return loss + math.inf

    @staticmethod
    def backward(ctx: Any, *outputs: Tensor) -> Tensor:
        return outputs[0]


def not_a_number(losses: Losses) -> tuple[Losses, dict[str, float] | None]:
    return {task: loss * math.nan for task, loss in losses.items()}, None


def infinite_loss(losses: Losses) -> tuple[Losses, dict[str, float] | None]:
    return {**losses, "search": Infinite.apply(losses["search"])}, None  # type: ignore[no-untyped-call]


def infinite_value(losses: Losses) -> tuple[Losses, dict[str, float] | None]:
    return losses, {"search": math.inf, "recommendation": 1.0}


def infinite_loss_with_finite_values(losses: Losses) -> tuple[Losses, dict[str, float] | None]:
    return infinite_loss(losses)[0], {"search": 1.0, "recommendation": 1.0}


def huge_gradient(losses: Losses) -> tuple[Losses, dict[str, float] | None]:
    """Finite gradients whose squares, Adam's second moment, are not."""
    return {task: loss * 1e30 for task, loss in losses.items()}, None


@pytest.mark.parametrize("refreshing", [False, True])
@pytest.mark.parametrize("settings", [{}, {"joint": False}, {"gate": "prior"}, {"clip": 0.1}])
@pytest.mark.parametrize(
    "spoil", [not_a_number, infinite_loss, infinite_value, infinite_loss_with_finite_values, huge_gradient]
)
def test_a_refused_step_changes_nothing(
    spoil: Callable[[Losses], tuple[Losses, dict[str, float] | None]],
    settings: dict[str, Any],
    refreshing: bool,
) -> None:
    model = network()
    optimizer = GEMS(model, TASKS, **{"lr": 1e-2, "rank": 3, "refresh_every": 5, "stagger": 1} | settings)
    for _ in train(model, optimizer, range(5 if refreshing else 4)):
        pass
    before, state = copy.deepcopy(model.state_dict()), copy.deepcopy(optimizer.state_dict())
    losses, values = spoil(regression(model, 5))
    optimizer.backward(losses, values=values)
    with pytest.raises(ArithmeticError, match="not finite"):
        optimizer.step()
    assert_same(model.state_dict(), before)
    assert_same(optimizer.state_dict(), state)
    for _ in train(model, optimizer, range(5, 8)):  # and the next steps are as good as ever
        pass
    assert all(bool(torch.isfinite(p).all()) for p in model.parameters())
    assert bool(torch.isfinite(optimizer.gate.weights()).all())


def test_an_infinite_loss_without_tasks_is_refused_too() -> None:
    model = nn.Linear(4, 4)
    optimizer = GEMS(model, lr=1e-2, rank=2)
    optimizer.backward(Infinite.apply(model(torch.ones(2, 4)).sum()))  # type: ignore[no-untyped-call]
    with pytest.raises(ArithmeticError, match="not finite"):
        optimizer.step()


@pytest.mark.parametrize(
    "settings",
    [
        {"lr": math.nan}, {"lr": -1.0}, {"lr": math.inf}, {"scale": math.nan}, {"weight_decay": -0.1}, {"eps": 0.0},
        {"betas": (1.0, 0.9)}, {"betas": (0.9, math.nan)}, {"cap": 1.0}, {"energy": 1.5}, {"energy": math.nan},
        {"clip": 0.0}, {"clip": math.nan}, {"growth_limit": -1.0},
    ],
)  # fmt: skip
def test_settings_out_of_range_are_named(settings: dict[str, Any]) -> None:
    name = next(iter(settings))
    with pytest.raises(GemsError, match=name.rstrip("s")):
        GEMS(network(), TASKS, **{"lr": 1e-2, "rank": 3} | settings)
