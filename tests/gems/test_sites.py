"""Layers that read the same input and have one basis."""

from __future__ import annotations

import copy
from typing import Any

import pytest
import torch
from support.bundles import make_model
from support.problems import TASKS, language_model, network, token_losses
from torch import Tensor, nn

from gems import GEMS, GemsError, find_linears, find_sites
from gems.model.linear import RoutedLinear
from gems.weights.subspace import leading_directions

IDS = {"input_ids": torch.zeros(1, 3, dtype=torch.long)}


def with_sites(model: nn.Module, **changes: Any) -> GEMS:
    linears = find_linears(model)
    settings: dict[str, Any] = {
        "lr": 3e-3, "rank_share": 0.25, "refresh_every": 5, "stagger": 1, "linears": linears, "plain": [],
        "sites": find_sites(model, IDS, linears),
    }  # fmt: skip
    return GEMS(model, TASKS, **settings | changes)


def train(model: nn.Module, optimizer: GEMS, steps: range) -> list[float]:
    joint = []
    for step in steps:
        losses = token_losses(model, step)
        joint.append(sum(loss.item() for loss in losses.values()))
        optimizer.backward(losses)
        optimizer.step()
    return joint


def test_sites_are_the_layers_of_a_module_that_read_one_tensor() -> None:
    model = make_model(97, "llama").train()
    before = torch.get_rng_state()
    sites = find_sites(model, IDS)
    assert sorted(sorted(name.split(".")[-2] for name in names) for names in sites) == [
        ["gate_proj", "up_proj"], ["gate_proj", "up_proj"],
        ["k_proj", "q_proj", "v_proj"], ["k_proj", "q_proj", "v_proj"],
    ]  # fmt: skip
    assert all(len({name.split(".")[2] for name in names}) == 1 for names in sites)  # of one block
    assert model.training
    assert torch.equal(torch.get_rng_state(), before)


def test_the_basis_is_that_of_all_gradients_of_the_site() -> None:
    """Each family's directions are the leading ones of the stacked gradients, and R = g V holds for each layer."""
    model = make_model(97, "llama").double()
    optimizer = with_sites(model, deflate=False, joint=False)
    twin = copy.deepcopy(model)
    losses = token_losses(twin, 0)
    full: dict[str, dict[str, Tensor]] = {
        task: dict(
            zip(
                [name for name, _ in twin.named_parameters()],
                torch.autograd.grad(loss, list(twin.parameters()), retain_graph=True),
                strict=True,
            )
        )
        for task, loss in losses.items()
    }
    optimizer.backward(token_losses(model, 0))
    for k, weight in enumerate(optimizer.weights):  # as a step would, without moving the weights
        assert optimizer._passes.is_due(k)
        held = {task: gradient.clone() for task, gradient in weight.full.items()}
        families = {task: optimizer._passes.families(task) for task in held}
        weight.refresh(0, families, (0.9, 0.98))
        spaces = weight.subspaces
        for family, columns in spaces.columns.items():
            own = TASKS if family == "shared" else (family,)
            stacked = torch.cat([sum(full[task][part.name] for task in own) for part in weight.parts])
            basis = spaces.basis[:, columns]
            expected = leading_directions(
                stacked, basis.shape[1], iterations=20, generator=torch.Generator().manual_seed(3)
            )
            energy = [(stacked @ each).square().sum() for each in (basis, expected)]
            assert energy[0] > 0.99 * energy[1], (weight.name, family)
            assert torch.allclose(spaces.projected[:, columns], stacked @ basis, atol=1e-12)
    assert {len(weight.parts) for weight in optimizer.weights} == {1, 2, 3}


def test_projected_gradients_between_refreshes_are_those_of_each_layer() -> None:
    model = make_model(97, "llama").double()
    optimizer = with_sites(model)
    train(model, optimizer, range(2))
    twin = copy.deepcopy(model)
    optimizer.backward(token_losses(model, 2))
    names = [name for name, _ in twin.named_parameters()]
    joint = torch.autograd.grad(sum(token_losses(twin, 2).values()), list(twin.parameters()))
    assert any(isinstance(layer, RoutedLinear) for layer in model.modules())
    for weight in optimizer.weights:
        columns = weight.subspaces.columns["shared"]
        for part in weight.parts:
            expected = joint[names.index(part.name)] @ weight.subspaces.basis[:, columns]
            assert torch.allclose(weight.subspaces.projected[part.rows, columns], expected, atol=1e-12)


def test_x_v_is_computed_once_for_a_site_and_not_held(monkeypatch: pytest.MonkeyPatch) -> None:
    model = make_model(97, "llama")
    optimizer = with_sites(model)
    train(model, optimizer, range(1))
    saved: list[int] = []
    with torch.autograd.graph.saved_tensors_hooks(lambda t: saved.append(t.data_ptr()) or t, lambda t: t):
        token_losses(model, 1)
    routes = [layer.route for layer in model.modules() if isinstance(layer, RoutedLinear)]
    assert len({id(route.inner) for route in routes}) == len(optimizer.weights) < len(routes)
    assert all(route.inner._inner is None for route in routes)
    inner = [p for p in set(saved) if saved.count(p) in (2, 3)]
    assert len(inner) >= 4  # two sites of three layers and two of two, each with one tensor for all


def test_what_is_known_stays_and_the_loss_falls() -> None:
    model, _, knowledge = language_model()
    optimizer = with_sites(model, knowledge=knowledge, lr=1e-2)
    before = {name: exact.clone() for name, exact in optimizer.exact_weights().items()}
    losses = train(model, optimizer, range(40))
    assert losses[-1] < losses[0]
    for weight in optimizer.weights:
        for part in weight.parts:
            change = part.exact() - before[part.name]
            known = knowledge.directions(part.name, 0.9, weight._known)
            assert float(change.norm()) > 0
            assert float((change @ known).norm() / change.norm()) < 1e-5


@pytest.mark.parametrize(
    ("dtype", "changes"),
    [
        (torch.float32, {}), (torch.bfloat16, {}), (torch.float32, {"relative": True, "growth_limit": 1.1}),
        (torch.float32, {"joint": False, "rank_scaling": True}),
    ],
)  # fmt: skip
def test_resuming_goes_on_bit_by_bit(dtype: torch.dtype, changes: dict[str, Any]) -> None:
    first, second = (make_model(97, "llama").to(dtype) for _ in range(2))
    optimizer = with_sites(first, **changes)
    train(first, optimizer, range(7))
    state = copy.deepcopy({"model": first.state_dict(), "optimizer": optimizer.state_dict()})
    train(first, optimizer, range(7, 13))
    again = with_sites(second, **changes)
    second.load_state_dict(state["model"])
    again.load_state_dict(state["optimizer"])
    train(second, again, range(7, 13))
    assert all(torch.equal(a, b) for a, b in zip(first.parameters(), second.parameters(), strict=True))
    assert all(map(torch.equal, optimizer.exact_weights().values(), again.exact_weights().values()))


def test_relative_steps_are_those_of_each_layer() -> None:
    model = make_model(97, "llama")
    with torch.no_grad():
        for layer in find_linears(model).values():
            layer.weight.mul_(torch.rand(()) * 5 + 0.5)
    optimizer = with_sites(model, relative=True)
    train(model, optimizer, range(1))
    for weight in optimizer.weights:
        lengths = weight._length()
        for part in weight.parts:
            own = part.exact().square().mean().sqrt()
            assert torch.allclose(lengths if lengths.ndim == 0 else lengths[part.rows], own, rtol=1e-5)


def test_a_site_of_one_layer_is_that_layer() -> None:
    models = [network(), network()]
    optimizers = [
        GEMS(models[0], TASKS, lr=1e-2, rank=3),
        GEMS(models[1], TASKS, lr=1e-2, rank=3, sites=[["0.weight"]]),
    ]
    for step in range(12):
        for model, optimizer in zip(models, optimizers, strict=True):
            x = torch.randn(9, 12, generator=torch.Generator().manual_seed(step))
            y = model(x)
            optimizer.backward({"search": y.square().mean(), "recommendation": (y - 1).square().mean()})
            optimizer.step()
    assert all(map(torch.equal, models[0].state_dict().values(), models[1].state_dict().values()))


def test_sites_that_cannot_be_are_refused() -> None:
    def make(*sites: list[str], **changes: Any) -> GEMS:
        return GEMS(network(), TASKS, lr=1e-2, rank=3, sites=sites, **changes)

    with pytest.raises(GemsError, match=r"sites name 7\.weight, which is none of the linear layers"):
        make(["0.weight", "7.weight"])
    with pytest.raises(GemsError, match=r"sites name 0\.weight twice"):
        make(["0.weight"], ["0.weight"])
    with pytest.raises(GemsError, match=r"0\.weight, 3\.weight cannot share a basis"):
        make(["0.weight", "3.weight"])
    with pytest.raises(GemsError, match="drop output_bases"):
        make(["0.weight"], output_bases=True)
    with pytest.raises(GemsError, match=r"was not used by the model"):
        find_sites(network()[0], torch.zeros(1, 12), find_linears(network()))


def test_a_state_without_sites_is_refused() -> None:
    model = make_model(97, "llama")
    plain = GEMS(model, TASKS, lr=1e-2, rank=3, plain=[])
    state = plain.state_dict()
    plain.close()
    with pytest.raises(GemsError, match="other layers"):
        with_sites(model, rank=3, rank_share=None).load_state_dict(state)


class Heads(nn.Module):
    """Two layers that read the same input, of which one may be frozen."""

    def __init__(self) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.first, self.second = nn.Linear(12, 5, bias=False), nn.Linear(12, 7, bias=False)

    def forward(self, x: Tensor) -> Tensor:
        return torch.cat([self.first(x), self.second(x)], dim=-1)


def test_the_product_with_an_old_basis_is_not_used_again() -> None:
    """Full-batch training reads the same tensor in every step, and one layer of the site is frozen on the way."""
    model = Heads()
    x = torch.randn(9, 12)
    sites = [["first.weight", "second.weight"]]
    optimizer = GEMS(model, lr=1e-2, rank=3, refresh_every=4, stagger=1, sites=sites)
    (weight,) = optimizer.weights
    for step in range(12):
        if step == 3:
            model.second.weight.requires_grad_(False)
        twin = copy.deepcopy(model)
        model(x).square().mean().backward()
        twin(x).square().mean().backward()
        if not optimizer._passes.is_due(0):
            rows = weight.parts[0].rows
            expected = twin.first.weight.grad @ weight.subspaces.basis  # type: ignore[operator]
            assert torch.allclose(weight.subspaces.projected[rows], expected, atol=1e-6), step
        optimizer.step()
        assert isinstance(model.first, RoutedLinear)
        assert model.first.route.inner._inner is None


def test_sites_with_other_inputs_than_the_knowledge_says_are_refused() -> None:
    model, _, knowledge = language_model()
    wrong = [[f"model.layers.0.self_attn.{name}_proj.weight" for name in "qo"]]
    with pytest.raises(GemsError, match="read different inputs, by the knowledge basis"):
        with_sites(model, knowledge=knowledge, sites=wrong)
