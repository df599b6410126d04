"""Float32 values of bf16 weights: nothing is lost, and no update adds noise; products in full precision."""

from __future__ import annotations

import math

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from gems.model.precision import full_precision
from gems.weights.numerics import SMALLEST, Remainder, magnitude

finite = st.floats(-(2.0**100), 2.0**100, width=32)


def stored(exact: Tensor) -> tuple[Tensor, Remainder]:
    weight = torch.zeros_like(exact, dtype=torch.bfloat16)
    remainder = Remainder(weight)
    remainder.store(weight, exact)
    return weight, remainder


@settings(max_examples=200, deadline=None)
@given(st.lists(finite, min_size=1, max_size=50))
def test_weight_and_remainder_are_the_float32_value(values: list[float]) -> None:
    exact = torch.tensor(values)
    weight, remainder = stored(exact)
    assert torch.equal(remainder.exact(weight), exact)


@settings(max_examples=200, deadline=None)
@given(st.lists(finite, min_size=1, max_size=50))
def test_the_weight_is_the_nearest_bf16_number(values: list[float]) -> None:
    exact = torch.tensor(values)
    weight, _ = stored(exact)
    nearest = exact.to(torch.bfloat16)
    error, least = (weight.float() - exact).abs(), (nearest.float() - exact).abs()
    assert bool((error <= least).all())  # ties may go either way


def test_updates_far_below_a_step_of_bf16_add_up() -> None:
    start = torch.randn(64, 32, generator=torch.Generator().manual_seed(0)).to(torch.bfloat16)
    weight, remainder = start.clone(), Remainder(start)
    reference = start.float()
    for step in range(500):
        update = 1e-5 * torch.randn(64, 32, generator=torch.Generator().manual_seed(step))
        exact = remainder.exact(weight)
        exact += update
        reference += update
        remainder.store(weight, exact)
    assert torch.equal(remainder.exact(weight), reference)
    assert not torch.equal(start, weight)


def test_weights_that_are_loaded_later_keep_less_than_a_step() -> None:
    weight, remainder = stored(torch.full((8,), 1.001))
    weight.fill_(3.0)
    assert bool(((remainder.exact(weight) - 3.0).abs() <= 2**-8 * 2).all())


@pytest.mark.parametrize("precision", ["high", "medium"])
def test_products_are_in_full_precision_and_the_callers_setting_returns(precision: str) -> None:
    rng = torch.Generator().manual_seed(0)
    a, b = (torch.randn(128, 128, generator=rng) for _ in range(2))
    exact = (a.double() @ b.double()).float()
    before = torch.get_float32_matmul_precision()
    try:
        torch.set_float32_matmul_precision(precision)
        with torch.autocast("cpu", dtype=torch.bfloat16):
            assert (a @ b).dtype == torch.bfloat16
            with full_precision(["cpu"]):
                assert torch.backends.cuda.matmul.fp32_precision == "ieee"
                assert float((a @ b - exact).abs().max()) < 1e-4
            assert (a @ b).dtype == torch.bfloat16
        assert torch.get_float32_matmul_precision() == precision
    finally:
        torch.set_float32_matmul_precision(before)


def test_the_setting_returns_after_an_error() -> None:
    before = torch.backends.mkldnn.matmul.fp32_precision
    with pytest.raises(ZeroDivisionError), full_precision(["cpu"]):
        raise ZeroDivisionError
    assert torch.backends.mkldnn.matmul.fp32_precision == before


def test_magnitude_is_the_root_mean_square_with_a_floor() -> None:
    weight = torch.tensor([[3.0, -4.0]])
    assert float(magnitude(weight)) == pytest.approx(math.sqrt(12.5))
    assert float(magnitude(torch.zeros(2, 2))) == pytest.approx(SMALLEST)
