"""Stochastic rounding: exact on average, and never further than the next bf16 number."""

from __future__ import annotations

import math

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from gems.numerics import add_

moderate = st.floats(-100, 100, width=32)


def generator(seed: int = 0) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


def rounded(exact: Tensor, seed: int = 0, start: Tensor | None = None) -> Tensor:
    """Write `exact` into bf16 with an update and return the result as fp32."""
    weight = torch.zeros_like(exact, dtype=torch.bfloat16) if start is None else start.clone()
    add_(weight, exact - weight.float(), generator(seed))
    assert weight.dtype == torch.bfloat16
    return weight.float()


def neighbours(exact: Tensor) -> tuple[Tensor, Tensor]:
    """Return the two bf16 neighbours of fp32 numbers: cut off towards zero, and one step further from zero."""
    bits = exact.view(torch.int32) & -0x10000
    away = torch.where(bits.view(torch.float32) == exact, bits, bits + 0x10000)
    return bits.view(torch.float32), away.view(torch.float32)


@settings(max_examples=100, deadline=None)
@given(st.lists(moderate, min_size=1, max_size=50), st.integers(0, 1000))
def test_the_result_is_one_of_the_two_neighbours(values: list[float], seed: int) -> None:
    exact = torch.tensor(values)
    found = rounded(exact, seed)
    towards, away = neighbours(exact)
    assert bool(((found == towards) | (found == away)).all())
    kept = towards == exact
    assert torch.equal(found[kept], exact[kept])


@pytest.mark.parametrize("value", [1.001, -1.001, 0.7 + 1e-5, -3.14159, 1e-20, -123.456, 1.0 + 2**-20])
def test_it_is_right_on_average(value: float) -> None:
    draws = 40_000
    exact = torch.full((draws,), value)
    found = rounded(exact, seed=1).double()
    towards, away = (side[0].double() for side in neighbours(exact))
    up = float((exact[0].double() - towards) / (away - towards))  # the probability of the one away from zero
    error = abs(float(away - towards)) * math.sqrt(up * (1 - up) / draws)
    assert set(found.unique().tolist()) <= {float(towards), float(away)}
    assert abs(float(found.mean()) - float(exact[0])) < 5 * error + 1e-12 * abs(value)
    assert abs(float(exact[0])) > 0


def test_tiny_updates_add_up() -> None:
    """Apply a thousand updates of 1/16 of a bf16 step: rounding to nearest would lose every one."""
    weight = torch.ones(4000, dtype=torch.bfloat16)
    lost = weight.clone()
    update = torch.full((4000,), 2.0**-11)  # the step at 1 is 2⁻⁷
    rng = generator()
    for _ in range(1000):
        add_(weight, update, rng)
        lost += update.bfloat16()
    assert torch.equal(lost, torch.ones_like(lost))
    expected = 1 + 1000 * 2.0**-11
    assert float(weight.double().mean()) == pytest.approx(expected, abs=0.005)


def test_negative_numbers_mirror_positive_ones() -> None:
    exact = torch.randn(1000, generator=generator())
    assert torch.equal(rounded(-exact, seed=4), -rounded(exact, seed=4))


def test_numbers_that_bf16_has_stay() -> None:
    weight = torch.randn(1000, generator=generator()).bfloat16()
    before = weight.clone()
    for seed in range(5):
        add_(weight, torch.zeros(1000), generator(seed))
    assert torch.equal(weight, before)
    add_(weight, before.float(), generator())  # doubling is exact
    assert torch.equal(weight, 2 * before)
    extremes = torch.tensor([0.0, -0.0, math.inf, -math.inf]).bfloat16()
    add_(extremes, torch.zeros(4), generator())
    assert extremes.tolist() == [0.0, 0.0, math.inf, -math.inf]


def test_a_generator_decides() -> None:
    exact = torch.randn(500, generator=generator())
    assert torch.equal(rounded(exact, seed=1), rounded(exact, seed=1))
    assert not torch.equal(rounded(exact, seed=1), rounded(exact, seed=2))
    torch.manual_seed(0)
    state = torch.get_rng_state()
    rounded(exact)
    assert torch.equal(torch.get_rng_state(), state)


def test_an_update_in_fp64_is_taken_too() -> None:
    weight = torch.ones(1000, dtype=torch.bfloat16)
    add_(weight, torch.full((1000,), 2.0**-9, dtype=torch.float64), generator())
    assert set(weight.tolist()) == {1.0, 1.0 + 2**-7}


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_other_types_are_plainly_added(dtype: torch.dtype) -> None:
    weight = torch.randn(20, 3, generator=generator(), dtype=dtype)
    update = torch.randn(20, 3, generator=generator(1), dtype=dtype)
    expected = weight + update
    rng = generator(2)
    state = rng.get_state()
    add_(weight, update, rng)
    assert torch.equal(weight, expected)
    assert torch.equal(rng.get_state(), state)  # no number was drawn


def test_a_parameter_that_asks_for_gradients_may_be_written() -> None:
    parameter = torch.nn.Parameter(torch.ones(3, dtype=torch.bfloat16))
    add_(parameter, torch.ones(3), generator())
    assert parameter.tolist() == [2.0, 2.0, 2.0]
    assert parameter.requires_grad
