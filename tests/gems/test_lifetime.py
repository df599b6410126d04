"""A model and its optimizers over time: layers that rest, second optimizers, deleted ones, saved and copied models."""

from __future__ import annotations

import copy
import gc
import io
import pickle
import warnings
import weakref
from pathlib import Path
from typing import Any

import pytest
import torch
from support.problems import TASKS, network, regression, train
from torch import Tensor, nn

from gems import GEMS, GemsError, collect_knowledge, find_linears
from gems.model.linear import RoutedLinear


def made(model: nn.Module, **settings: Any) -> GEMS:
    return GEMS(model, TASKS, **{"lr": 1e-2, "rank": 3, "refresh_every": 4, "stagger": 1} | settings)


def parameters_of(model: nn.Module) -> list[Tensor]:
    return [p.detach().clone() for p in model.parameters()]


class Experts(nn.Module):
    """Two experts, of which one is chosen for each batch."""

    def __init__(self) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.experts = nn.ModuleList(nn.Linear(8, 8, bias=False) for _ in range(2))

    def forward(self, x: Tensor, chosen: int) -> Tensor:
        y: Tensor = self.experts[chosen](x)
        return y


def expert_losses(model: Experts, step: int, chosen: int) -> dict[str, Tensor]:
    x = torch.randn(6, 8, generator=torch.Generator().manual_seed(step))
    y = model(x, chosen)
    return {"search": (y - x).square().mean(), "recommendation": (y + x.flip(0)).square().mean()}


@pytest.mark.filterwarnings("ignore:no gradient has reached")
def test_an_expert_that_is_used_late_joins_when_it_is_used() -> None:
    model = Experts()
    optimizer = made(model)
    before = parameters_of(model)
    for step in range(6):
        optimizer.backward(expert_losses(model, step, 0))
        optimizer.step()
    assert torch.equal(model.experts[1].weight, before[1])  # type: ignore[arg-type]
    assert not torch.equal(model.experts[0].weight, before[0])  # type: ignore[arg-type]
    for step in range(6, 9):
        optimizer.backward(expert_losses(model, step, 1))
        optimizer.step()
    assert not torch.equal(model.experts[1].weight, before[1])  # type: ignore[arg-type]


def test_a_layer_that_rests_keeps_weight_and_moments() -> None:
    """It would drift by its momentum and shrink by weight decay otherwise."""
    model = Experts()
    optimizer = made(model, weight_decay=0.1, refresh_every=100)
    for step in range(4):
        optimizer.backward(expert_losses(model, step, step % 2))
        optimizer.step()
    weight = optimizer.weights[1]
    kept = [
        weight.parts[0].parameter.detach().clone(),
        weight.subspaces.first.clone(),
        dict(weight.subspaces.counts),
    ]
    for step in range(4, 7):
        optimizer.backward(expert_losses(model, step, 0))
        optimizer.step()
    assert torch.equal(weight.parts[0].parameter, kept[0])
    assert torch.equal(weight.subspaces.first, kept[1])
    assert weight.subspaces.counts == kept[2]


@pytest.mark.parametrize("settings", [{}, {"relative": True, "growth_limit": 1.2}])
def test_a_layer_that_rests_stays_also_next_to_one_with_the_same_basis(settings: dict[str, Any]) -> None:
    """Two heads of one module read the same input: each has batches without the other."""
    model, alone = Experts(), Experts()
    sites = [["experts.0.weight", "experts.1.weight"]]
    optimizer = made(model, weight_decay=0.1, refresh_every=5, sites=sites, **settings)
    (weight,) = optimizer.weights
    for step in range(4):
        optimizer.backward(expert_losses(model, step, step % 2))
        optimizer.step()
    rows = weight.parts[1].rows
    kept = [
        parameters_of(model)[1],
        weight.subspaces.first[rows].clone(),
        weight.subspaces.second[rows].clone(),
    ]
    optimizer.backward(expert_losses(model, 4, 0))
    optimizer.step()
    assert not torch.equal(model.experts[0].weight, alone.experts[0].weight)  # type: ignore[arg-type]
    found = [model.experts[1].weight, weight.subspaces.first[rows], weight.subspaces.second[rows]]
    assert all(map(torch.equal, found, kept))
    for step in range(5, 9):  # with a refresh, which turns the moments into the new basis
        optimizer.backward(expert_losses(model, step, 0))
        optimizer.step()
    assert torch.equal(model.experts[1].weight, kept[0])  # type: ignore[arg-type]


@pytest.mark.parametrize("sites", [None, [["experts.0.weight", "experts.1.weight"]]])
def test_a_layer_that_is_never_used_is_named(sites: list[list[str]] | None) -> None:
    model = Experts()
    optimizer = made(model, refresh_every=3, sites=sites)
    for step in range(2):
        optimizer.backward(expert_losses(model, step, 0))
        optimizer.step()
    optimizer.backward(expert_losses(model, 2, 0))
    with pytest.warns(UserWarning, match=r"no gradient has reached experts\.1\.weight in 3 steps") as caught:
        optimizer.step()
    assert caught[0].filename == __file__


def test_a_step_without_a_backward_pass_does_nothing() -> None:
    model = network()
    optimizer = made(model, weight_decay=0.1)
    optimizer.step()
    assert optimizer.steps == 0
    for _ in train(model, optimizer, range(3)):
        pass
    before, state = parameters_of(model), optimizer.steps
    optimizer.step()
    assert all(torch.equal(a, b) for a, b in zip(model.parameters(), before, strict=True))
    assert optimizer.steps == state


def test_parameters_cannot_be_added_later() -> None:
    with pytest.raises(GemsError, match="when it is made"):
        made(network()).add_param_group({"params": [nn.Parameter(torch.ones(2))]})


def test_a_second_optimizer_is_refused_until_the_first_is_closed() -> None:
    model = network()
    first = made(model)
    with pytest.raises(GemsError, match=r"0\.weight belongs to another GEMS optimizer.*close"):
        made(model)
    for _ in train(model, first, range(3)):  # the first one is as it was
        pass
    first.close()
    second = made(model)
    before = parameters_of(model)
    for _ in train(model, second, range(3)):
        pass
    assert not any(torch.equal(a, b) for a, b in zip(model.parameters(), before, strict=True))


def test_a_model_whose_optimizer_is_gone_is_a_plain_model() -> None:
    model = network()
    optimizer = made(model)
    for _ in train(model, optimizer, range(3)):
        pass
    del optimizer
    regression(model, 0)["search"].backward()
    assert all(p.grad is not None for p in model.parameters())
    model.zero_grad()
    again = made(model)
    for _ in train(model, again, range(3)):
        pass


@pytest.mark.parametrize("way", ["pickle", "torch", "deepcopy"])
def test_a_whole_model_is_saved_and_copied_as_a_plain_one(way: str, tmp_path: Path) -> None:
    model = network()
    optimizer = made(model)
    for _ in train(model, optimizer, range(3)):
        pass
    assert isinstance(model[0], RoutedLinear)
    if way == "pickle":
        twin = pickle.loads(pickle.dumps(model))  # noqa: S301 (our own bytes)
    elif way == "deepcopy":
        twin = copy.deepcopy(model)
    else:
        buffer = io.BytesIO()
        torch.save(model, buffer)
        buffer.seek(0)
        twin = torch.load(buffer, weights_only=False)
    assert type(twin[0]) is nn.Linear
    assert isinstance(model[0], RoutedLinear)
    x = torch.randn(5, 12)
    assert torch.equal(twin(x), model(x))
    twin(x).sum().backward()
    assert twin[0].weight.grad is not None
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        made(twin)  # the copy may be tuned by itself


def test_gpt2_layers_are_those_of_linear_ones() -> None:
    """`Conv1D` stores its weight as [inputs, outputs]; the same training moves it in the same way."""
    from transformers.pytorch_utils import Conv1D

    kinds = (nn.Linear, lambda n, m: Conv1D(m, n))
    models = [nn.Sequential(kind(8, 12), nn.Tanh(), kind(12, 8)) for kind in kinds]
    models = [model.double() for model in models]
    with torch.no_grad():
        for k in (0, 2):
            models[1][k].weight.copy_(models[0][k].weight.T)
            models[1][k].bias.copy_(models[0][k].bias)
    text = torch.randn(30, 2, dtype=torch.float64) @ torch.randn(2, 8, dtype=torch.float64)
    for protected in (False, True):
        optimizers = []
        for model in models:
            layers = find_linears(model)
            assert list(layers) == ["0.weight", "2.weight"]
            knowledge = collect_knowledge(model, [text], layers) if protected else None
            optimizers.append(made(model, knowledge=knowledge, rank=2))
        assert optimizers[0].ranks == optimizers[1].ranks
        for step in range(6):
            x = torch.randn(9, 8, generator=torch.Generator().manual_seed(step), dtype=torch.float64)
            for model, optimizer in zip(models, optimizers, strict=True):
                y = model(x)
                optimizer.backward({"search": (y - x).square().mean(), "recommendation": y.sin().mean()})
                optimizer.step()
            for k in (0, 2):
                assert torch.allclose(models[1][k].weight.T, models[0][k].weight, rtol=0, atol=1e-9)
        for optimizer in optimizers:
            optimizer.close()


def test_fused_experts_are_tuned_one_by_one() -> None:
    """One parameter with all experts, and a parameter for each: the same training."""

    class FusedExperts(nn.Module):
        def __init__(self, weights: list[Tensor]) -> None:
            super().__init__()
            self.up = nn.Parameter(torch.stack(weights))

        def forward(self, x: Tensor) -> Tensor:
            return torch.stack([x @ self.up[k].T for k in range(len(self.up))]).sum(0)

    weights = [torch.randn(8, 6, generator=torch.Generator().manual_seed(k)).double() for k in range(3)]
    fused = FusedExperts(weights)
    apart = nn.ModuleList(nn.Linear(6, 8, bias=False, dtype=torch.float64) for _ in weights)
    with torch.no_grad():
        for layer, weight in zip(apart, weights, strict=True):
            layer.weight.copy_(weight)  # type: ignore[operator]
    optimizers = [made(model, rank=2, stagger=3) for model in (fused, apart)]
    assert list(optimizers[0].ranks) == ["up.0", "up.1", "up.2"]
    for step in range(7):
        x = torch.randn(9, 6, generator=torch.Generator().manual_seed(step), dtype=torch.float64)
        for y, optimizer in ((fused(x), optimizers[0]), (sum(layer(x) for layer in apart), optimizers[1])):
            optimizer.backward({"search": y.square().mean(), "recommendation": y.sin().mean()})
            optimizer.step()
    assert fused.up.grad is None
    for k, layer in enumerate(apart):
        assert torch.allclose(fused.up[k], layer.weight, rtol=0, atol=1e-9)  # type: ignore[arg-type]
    state = optimizers[0].state_dict()
    again = made(copy.deepcopy(fused), rank=2, stagger=3)
    again.load_state_dict(state)
    assert again.steps == 7
    assert len(state["state"]) == 1


def test_the_state_of_a_deleted_optimizer_is_freed() -> None:
    model = network()
    optimizer = made(model)
    for _ in train(model, optimizer, range(2)):
        pass
    bases = [weakref.ref(weight.subspaces.basis) for weight in optimizer.weights]
    del optimizer
    gc.collect()
    assert [basis() for basis in bases] == [None, None]


@pytest.mark.filterwarnings("ignore:the ranks were cut down")
def test_a_second_optimizer_is_refused_where_no_layer_is_routed() -> None:
    model = nn.Linear(6, 6, bias=False)
    first = GEMS(model, lr=1e-2, rank_share=1.0)
    with pytest.raises(GemsError, match="belongs to another GEMS"):
        GEMS(model, lr=1e-2, rank_share=1.0)
    first.close()
    GEMS(model, lr=1e-2, rank_share=1.0)


def test_an_expert_without_tokens_keeps_its_basis_in_a_refresh() -> None:
    model = nn.ModuleList(nn.Linear(16, 16, bias=False) for _ in range(2))
    optimizer = GEMS(model, lr=1e-2, rank=4, refresh_every=4, stagger=1)
    for step in range(5):
        x = torch.randn(9, 16, generator=torch.Generator().manual_seed(step))
        if step == 4:
            before = optimizer.weights[1].subspaces.basis.clone()
        idle = 0.0 if step == 4 else 1.0  # the gradient is there, and zero
        optimizer.backward((model[0](x).square() + idle * model[1](x).square()).mean())
        optimizer.step()
    after = optimizer.weights[1].subspaces.basis
    assert float((before.T @ after).square().sum()) == pytest.approx(4, rel=1e-4)
    assert optimizer.weights[1].subspaces.ready


def test_an_expert_without_tokens_has_its_first_refresh_later() -> None:
    model = nn.ModuleList(nn.Linear(16, 16, bias=False) for _ in range(2))
    optimizer = GEMS(model, lr=1e-2, rank=4, refresh_every=50, stagger=1)
    for idle in (0.0, 0.0, 1.0):
        x = torch.randn(9, 16)
        optimizer.backward((model[0](x).square() + idle * model[1](x).square()).mean())
        optimizer.step()
        assert optimizer.weights[1].subspaces.ready == bool(idle)


def test_a_state_with_other_plain_parameters_is_refused_before_anything_is_loaded() -> None:
    model, other = network(), network()
    optimizer = made(model)
    for _ in train(model, optimizer, range(2)):
        pass
    other[3].bias.requires_grad_(False)
    fresh = made(other)
    with pytest.raises(GemsError, match="other plain parameters"):
        fresh.load_state_dict(optimizer.state_dict())
    assert not any(weight.subspaces.ready for weight in fresh.weights)


def test_a_loss_that_reaches_plain_parameters_only_moves_them() -> None:
    model = network()
    optimizer = GEMS(model, lr=1e-2, rank=3)
    before = model[1].bias.detach().clone()
    model[1].bias.sum().backward()
    optimizer.step()
    assert not torch.equal(before, model[1].bias)
    assert optimizer.steps == 1
