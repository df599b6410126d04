"""Updates stay out of the knowledge directions in low precision, under autocast and with TF32."""

from __future__ import annotations

import copy
from typing import Any

import pytest
import torch
from support.problems import TASKS, network, regression
from torch import Tensor, nn

from gems import GEMS, KnowledgeBasis, collect_knowledge, find_linears


def known_network(dtype: torch.dtype) -> tuple[nn.Sequential, KnowledgeBasis]:
    """A network that knows inputs in a third of its directions."""
    model = network(dtype)
    rng = torch.Generator().manual_seed(3)
    inputs = torch.randn(200, 4, generator=rng) @ torch.randn(4, 12, generator=rng)
    return model, collect_knowledge(model, [inputs.to(dtype)], find_linears(model))


def made(model: nn.Module, knowledge: KnowledgeBasis, **settings: Any) -> GEMS:
    defaults: dict[str, Any] = {"lr": 1e-2, "rank": 2, "refresh_every": 50, "stagger": 2}
    return GEMS(model, TASKS, knowledge=knowledge, **defaults | settings)


def leaks(optimizer: GEMS, knowledge: KnowledgeBasis, before: dict[str, Tensor]) -> list[float]:
    """Return ‖Δ U‖ / ‖Δ‖ of each weight, Δ: the change of its exact value."""
    found = []
    for name, exact in optimizer.exact_weights().items():
        change = exact.double() - before[name].double()
        directions = knowledge.directions(name, 0.9, exact.shape[1] // 2).double()
        assert float(change.norm()) > 0
        found.append(float((change @ directions).norm() / change.norm()))
    return found


def weights_before(optimizer: GEMS) -> dict[str, Tensor]:
    return {name: exact.clone() for name, exact in optimizer.exact_weights().items()}


@pytest.mark.parametrize("lr", [1e-3, 1e-4, 1e-5])
def test_bf16_weights_keep_what_they_know_at_every_rate(lr: float) -> None:
    """A thousand steps; the leak of weights that are rounded in each step is 0.1 to 0.6 after a hundred."""
    model, knowledge = known_network(torch.bfloat16)
    optimizer = made(model, knowledge, lr=lr)
    before = weights_before(optimizer)
    for step in range(1000):
        optimizer.backward(regression(model, step, torch.bfloat16))
        optimizer.step()
    assert max(leaks(optimizer, knowledge, before)) <= 1e-3
    for weight in optimizer.weights:  # what is served is the nearest bf16 number: at most half a step away
        exact = optimizer.exact_weights()[weight.name]
        held = weight.parts[0].parameter.detach().float()
        assert bool(((held - exact).abs() <= 2**-8 * exact.abs() * (1 + 1e-6)).all())


def test_bf16_weights_move_as_float32_ones_do() -> None:
    exact = network()
    low = copy.deepcopy(exact).to(torch.bfloat16)
    exact = copy.deepcopy(low).float()
    optimizers = [
        GEMS(m, TASKS, lr=1e-5, rank=3, gate="uniform", joint=False, plain=[]) for m in (exact, low)
    ]
    gradients = [
        torch.randn(*p.shape, generator=torch.Generator().manual_seed(k)).to(torch.bfloat16).float()
        for k, p in enumerate(exact.parameters())
    ]
    for _ in range(60):
        for model, optimizer in zip((exact, low), optimizers, strict=True):
            # a loss whose gradient does not depend on the weights, so that both see the same
            loss = sum((p.float() * g).sum() for p, g in zip(model.parameters(), gradients, strict=True))
            optimizer.backward({"search": loss, "recommendation": 0.5 * loss})
            optimizer.step()
    for name, reached in optimizers[1].exact_weights().items():
        assert torch.allclose(reached, optimizers[0].exact_weights()[name], rtol=0, atol=2e-7)


def test_weight_decay_reaches_bf16_weights() -> None:
    """Each step takes off a ten-thousandth, far below a step of bf16."""
    model = nn.Linear(8, 8, bias=False).to(torch.bfloat16)
    optimizer = GEMS(model, lr=1e-3, rank=2, scale=0.0, weight_decay=1e-1)
    start = weights_before(optimizer)["weight"]
    for _ in range(50):
        optimizer.backward(model(torch.ones(1, 8, dtype=torch.bfloat16)).float().sum())
        optimizer.step()
    assert torch.allclose(optimizer.exact_weights()["weight"], start * (1 - 1e-4) ** 50, rtol=1e-5)


@pytest.mark.parametrize("relative", [False, True])
def test_plain_parameters_in_bf16_follow_those_in_float32(relative: bool) -> None:
    """A norm of ones has steps of 2⁻⁷: updates of 1e-4 would all be lost."""
    low, exact = nn.LayerNorm(8).to(torch.bfloat16), nn.LayerNorm(8)
    found = []
    for norm in (low, exact):
        model = nn.Sequential(nn.Linear(8, 8, bias=False).to(norm.weight.dtype), norm)
        optimizer = GEMS(model, lr=1e-4, rank=2, relative=relative)
        for _ in range(100):
            optimizer.backward(
                (norm.weight.float() * torch.linspace(-1, 1, 8)).sum() + norm.bias.float().sum()
            )
            optimizer.step()
        found.append(norm.weight.detach().float())
    assert torch.allclose(found[0], found[1], rtol=0, atol=2**-8)
    assert float((found[0] - 1).abs().max()) > 5e-3


def test_a_plain_parameter_that_is_loaded_later_is_not_overwritten() -> None:
    norm = nn.LayerNorm(8).to(torch.bfloat16)
    optimizer = GEMS(nn.Sequential(nn.Linear(8, 8).to(torch.bfloat16), norm), lr=1e-4, rank=2)
    with torch.no_grad():
        norm.weight.fill_(3.0)
    optimizer.backward(norm.weight.float().sum())
    optimizer.step()
    assert float((norm.weight - 3.0).abs().max()) < 0.02


@pytest.mark.parametrize("precision", ["highest", "medium"])
def test_steps_inside_autocast_leak_nothing(precision: str) -> None:
    """Backward pass, hooks, refreshes and steps inside autocast; on a processor with bf16 also coarse products."""
    model, knowledge = known_network(torch.float32)
    optimizer = made(model, knowledge)
    before = weights_before(optimizer)
    set_before = torch.get_float32_matmul_precision()
    try:
        torch.set_float32_matmul_precision(precision)
        with torch.autocast("cpu", dtype=torch.bfloat16):
            for step in range(120):
                optimizer.backward({task: loss.float() for task, loss in regression(model, step).items()})
                optimizer.step()
    finally:
        torch.set_float32_matmul_precision(set_before)
    assert max(leaks(optimizer, knowledge, before)) < 1e-5


def test_weights_that_are_set_to_zero_train_on() -> None:
    model = network(torch.bfloat16)
    optimizer = GEMS(model, TASKS, lr=1e-2, rank=3)
    for step in range(30):
        if step == 5:
            with torch.no_grad():
                model[0].weight.zero_()  # type: ignore[operator]
        optimizer.backward(regression(model, step, torch.bfloat16))
        optimizer.step()
    assert bool(torch.isfinite(optimizer.exact_weights()["0.weight"]).all())
    assert float((model[0].weight == 0).float().mean()) < 0.02


def test_narrowed_weights_keep_every_number_and_are_float32_again_when_widened() -> None:
    model, knowledge = known_network(torch.float32)
    optimizer = made(model, knowledge, refresh_every=4)  # on the weights that the knowledge is of
    before = weights_before(optimizer)
    optimizer.narrow()
    assert {p.dtype for p in model.parameters() if p.ndim > 1} == {torch.bfloat16}
    assert all(torch.equal(exact, before[name]) for name, exact in optimizer.exact_weights().items())
    for step in range(20):
        with torch.autocast("cpu", dtype=torch.bfloat16):
            losses = regression(model, step)
        optimizer.backward({task: loss.float() for task, loss in losses.items()})
        optimizer.step()
    assert max(leaks(optimizer, knowledge, before)) <= 1e-3
    exact = weights_before(optimizer)
    optimizer.widen()
    assert {p.dtype for p in model.parameters()} == {torch.float32}
    assert all(torch.equal(weight, exact[name]) for name, weight in optimizer.exact_weights().items())
    assert all(torch.equal(model.get_parameter(name), weight) for name, weight in exact.items())
