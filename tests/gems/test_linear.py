"""Layers that compute projected gradients: the same outputs and gradients as plain layers."""

from __future__ import annotations

import copy

import pytest
import torch
from support.problems import TASKS, language_model, network, regression, token_losses
from torch import nn

from gems import GEMS, GemsError, plain_gradients
from gems.model.linear import RoutedLinear


def optimizer_of(model: nn.Module, **settings: object) -> GEMS:
    size = {} if "rank_share" in settings else {"rank": 3}
    return GEMS(model, TASKS, **{"lr": 1e-2, "refresh_every": 50, "stagger": 1} | size | settings)  # type: ignore[arg-type]


def test_projected_gradients_are_those_of_the_full_ones() -> None:
    model = network(torch.float64)
    optimizer = optimizer_of(model, joint=False)
    optimizer.backward(regression(model, 0, torch.float64))
    optimizer.step()
    twin = copy.deepcopy(model)
    assert all(type(layer) is nn.Linear for layer in (twin[0], twin[3]))
    optimizer.backward(regression(model, 1, torch.float64))
    losses = regression(twin, 1, torch.float64)
    full = {
        task: torch.autograd.grad(loss, list(twin.parameters()), retain_graph=True)
        for task, loss in losses.items()
    }
    names = [name for name, _ in twin.named_parameters()]
    for weight in optimizer.weights:
        of = {task: gradients[names.index(weight.name)] for task, gradients in full.items()}
        spaces = weight.subspaces
        for family, columns in spaces.columns.items():
            gradient = weight.parts[0].seen(sum(of.values()) if family == "shared" else of[family])
            assert torch.allclose(
                spaces.projected[:, columns], gradient @ spaces.basis[:, columns], atol=1e-12
            )
    for k, parameter in enumerate(model.parameters()):
        if names[k] not in {weight.name for weight in optimizer.weights}:  # biases and norms
            joint = sum(gradients[k] for gradients in full.values())
            assert parameter.grad is not None
            assert torch.allclose(parameter.grad, joint, atol=1e-12)


def test_a_language_model_computes_no_full_gradient_between_refreshes() -> None:
    model, linears, _ = language_model()
    optimizer = optimizer_of(model, linears=linears, rank_share=0.25)
    optimizer.backward(token_losses(model, 0))
    optimizer.step()
    saved = []
    with torch.autograd.graph.saved_tensors_hooks(lambda t: saved.append(t.shape) or t, lambda t: t):
        losses = token_losses(model, 1)
    optimizer.backward(losses)
    assert all(isinstance(layer, RoutedLinear) for layer in linears.values())
    assert all(weight.parts[0].parameter.grad is None for weight in optimizer.weights)
    assert (48, 16) in {tuple(shape) for shape in saved}  # 4 · 12 tokens, x V of 32 inputs


def test_a_weight_that_is_used_without_its_layer_is_projected_too() -> None:
    models = [network(torch.float64), network(torch.float64)]
    optimizers = [optimizer_of(model) for model in models]
    for step in range(4):
        for k, (model, optimizer) in enumerate(zip(models, optimizers, strict=True)):
            x = torch.randn(9, 12, generator=torch.Generator().manual_seed(step), dtype=torch.float64)
            inner = model[0](x) if k == 0 else x @ model[0].weight.T
            outputs = model[3](model[2](model[1](inner)))
            optimizer.backward({"search": outputs.square().mean(), "recommendation": outputs.sin().mean()})
            optimizer.step()
    for a, b in zip(models[0].parameters(), models[1].parameters(), strict=True):
        assert torch.allclose(a, b, atol=1e-10)


def test_gradients_reach_the_inputs() -> None:
    model = network(torch.float64)
    optimizer = optimizer_of(model)
    optimizer.backward(regression(model, 0, torch.float64))
    optimizer.step()
    x = torch.randn(5, 12, dtype=torch.float64, requires_grad=True)
    optimizer.backward({"search": model(x).square().sum()})
    with plain_gradients():
        (expected,) = torch.autograd.grad(
            model(x.detach().requires_grad_(True)).square().sum(), [model[0].weight]
        )
    y = x.detach().clone().requires_grad_(True)
    copy.deepcopy(model)(y).square().sum().backward()
    assert x.grad is not None
    assert torch.allclose(x.grad, y.grad)
    assert expected.shape == model[0].weight.shape


def test_a_closed_optimizer_lets_go_of_the_model() -> None:
    model = network()
    optimizer = optimizer_of(model)
    optimizer.backward(regression(model, 0))
    optimizer.step()
    with pytest.raises(GemsError, match="told apart"):
        regression(model, 1)["search"].backward()
    optimizer.close()
    assert type(model[0]) is nn.Linear
    regression(model, 1)["search"].backward()
    assert model[0].weight.grad is not None


def test_bf16_layers_project_in_bf16_and_sum_in_fp32() -> None:
    model = network(torch.bfloat16)
    optimizer = optimizer_of(model)
    for step in range(3):
        optimizer.backward(regression(model, step, torch.bfloat16))
        optimizer.step()
    assert optimizer.weights[0].subspaces.projected.dtype == torch.float32
    assert all(bool(torch.isfinite(p).all()) for p in model.parameters())


def test_autocast_works() -> None:
    model = network()
    optimizer = optimizer_of(model)
    before = model[0].weight.detach().clone()
    for step in range(3):
        with torch.autocast("cpu", dtype=torch.bfloat16):
            losses = regression(model, step)
        optimizer.backward({task: loss.float() for task, loss in losses.items()})
        optimizer.step()
    assert model[0].weight.dtype == torch.float32
    assert not torch.equal(before, model[0].weight)


def test_gradients_of_inputs_alone_leave_the_weights_alone() -> None:
    model = network()
    optimizer = GEMS(model, lr=1e-2, rank=3, refresh_every=50, stagger=1)
    optimizer.backward(regression(model, 0)["search"])
    optimizer.step()
    x = torch.randn(5, 12, requires_grad=True)
    (found,) = torch.autograd.grad(model(x).square().sum(), [x])
    (expected,) = torch.autograd.grad(copy.deepcopy(model)(x).square().sum(), [x])
    assert torch.allclose(found, expected)
    assert all(float(weight.subspaces.projected.abs().sum()) == 0 for weight in optimizer.weights)
    before = model[0].weight.detach().clone()
    optimizer.step()  # no backward pass: nothing happens
    assert torch.equal(model[0].weight, before)


def test_a_gradient_penalty_is_learned_and_keeps_no_graph() -> None:
    model = network(torch.float64)
    optimizer = GEMS(model, lr=1e-2, rank=3, refresh_every=50, stagger=1)
    optimizer.backward(regression(model, 0, torch.float64)["search"])
    optimizer.step()
    twin = copy.deepcopy(model)
    losses = []
    for each in (model, twin):
        x = torch.ones(4, 12, dtype=torch.float64, requires_grad=True)
        (slope,) = torch.autograd.grad(each(x).sin().sum(), [x], create_graph=True)
        losses.append(slope.square().sum())
    optimizer.backward(losses[0])
    full = torch.autograd.grad(losses[1], [twin[0].weight, twin[3].weight])
    for weight, gradient in zip(optimizer.weights, full, strict=True):
        spaces = weight.subspaces
        assert torch.allclose(spaces.projected, weight.parts[0].seen(gradient) @ spaces.basis, atol=1e-10)
        assert not spaces.projected.requires_grad
