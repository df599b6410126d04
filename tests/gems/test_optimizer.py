"""The optimizer against references (AdamW, subspace tuning, brute force), and its invariants."""

from __future__ import annotations

import copy
from pathlib import Path
from typing import Any

import pytest
import torch
from support.problems import TASKS, language_model, network, regression, token_losses, train
from torch import Tensor, nn

from gems import GEMS, GemsError, KnowledgeBasis

BETAS = (0.9, 0.98)


def weights_of(model: nn.Module) -> dict[str, Tensor]:
    return {name: p.detach().clone() for name, p in model.named_parameters()}


def make(model: nn.Module, tasks: tuple[str, ...] = TASKS, **settings: Any) -> GEMS:
    size = {} if "rank_share" in settings else {"rank": 3}
    return GEMS(model, tasks, **{"lr": 1e-2, "refresh_every": 5, "stagger": 1} | size | settings)


def test_full_rank_and_one_loss_is_adamw_in_the_rotated_basis() -> None:
    """Compute N Vᵀ of Adam on g V: rotate the weights by V, run AdamW there, and rotate back."""
    layer = nn.Linear(6, 6, bias=False, dtype=torch.float64)
    inputs = torch.randn(30, 6, dtype=torch.float64)
    target = torch.randn(30, 6, dtype=torch.float64)
    mixing = torch.randn(6, 6, dtype=torch.float64)
    start = layer.weight.detach().clone()
    optimizer = GEMS(layer, lr=1e-2, rank=6, refresh_every=1000, eps=1e-8)
    for _ in range(25):
        optimizer.backward((layer(inputs @ mixing) - target).square().mean())
        optimizer.step()
    basis = optimizer.weights[0].subspaces.basis
    assert torch.allclose(basis.T @ basis, torch.eye(6, dtype=torch.float64), atol=1e-12)
    rotated = nn.Parameter(start @ basis)
    reference = torch.optim.AdamW([rotated], lr=1e-2, betas=BETAS, weight_decay=0.0)
    for _ in range(25):
        reference.zero_grad()
        (inputs @ mixing @ (rotated @ basis.T).T - target).square().mean().backward()
        reference.step()
    assert torch.allclose(layer.weight, rotated @ basis.T, atol=1e-11)
    assert not torch.allclose(layer.weight, start, atol=1e-2)


@pytest.mark.parametrize("settings", [{}, {"rank_scaling": True}, {"relative": True}, {"clip": 0.1}])
def test_bases_of_outputs_are_bases_of_inputs_of_the_transposed_weight(settings: dict[str, Any]) -> None:
    tall, wide = (nn.Linear(n, m, bias=False, dtype=torch.float64) for m, n in ((9, 6), (6, 9)))
    with torch.no_grad():
        wide.weight.copy_(tall.weight.T)
    optimizers = [
        make(layer, rank=2, refresh_every=3, output_bases=True, **settings) for layer in (tall, wide)
    ]
    assert [optimizer.weights[0].on_outputs for optimizer in optimizers] == [True, False]
    for step in range(8):
        rng = torch.Generator().manual_seed(step)
        inputs, target = (torch.randn(20, k, generator=rng, dtype=torch.float64) for k in (6, 9))
        for outputs, optimizer in ((tall(inputs), optimizers[0]), (inputs @ wide.weight, optimizers[1])):
            error = (outputs - target).square()
            optimizer.backward({"search": error[:10].mean(), "recommendation": error[10:].mean()})
            optimizer.step()
        assert torch.allclose(tall.weight, wide.weight.T, rtol=0, atol=1e-9)
    assert optimizers[0].weights[0].subspaces.basis.shape == (9, 4)


def test_the_shared_subspace_alone_is_subspace_tuning() -> None:
    """Plain GaLore: SVD basis of the joint gradient, Adam in this basis, stale moments."""
    model = nn.Linear(10, 8, bias=False, dtype=torch.float64)
    plain = copy.deepcopy(model)
    optimizer = GEMS(model, lr=1e-2, rank=3, refresh_every=4, stagger=1, transport=False)
    first = second = torch.zeros(8, 3, dtype=torch.float64)
    basis = torch.zeros(0)
    for step in range(12):
        rng = torch.Generator().manual_seed(step)
        x, y = (
            torch.randn(40, k, generator=rng, dtype=torch.float64) * torch.arange(1, k + 1) for k in (10, 8)
        )
        optimizer.backward((model(x) - y).square().mean())
        optimizer.step()
        (gradient,) = torch.autograd.grad((plain(x) - y).square().mean(), [plain.weight])
        if step % 4 == 0:
            found = torch.linalg.svd(gradient)[2][:3].T
            if step:
                # A basis is unique up to signs, but Adam is not blind to them.
                mine = optimizer.weights[0].subspaces.basis
                found = found * (found * mine).sum(0).sign()
            else:
                found = found * (found * optimizer.weights[0].subspaces.basis).sum(0).sign()
            basis = found
        first = BETAS[0] * first + (1 - BETAS[0]) * gradient @ basis
        second = BETAS[1] * second + (1 - BETAS[1]) * (gradient @ basis).square()
        scaled = (
            first / (1 - BETAS[0] ** (step + 1)) / ((second / (1 - BETAS[1] ** (step + 1))).sqrt() + 1e-8)
        )
        with torch.no_grad():
            plain.weight -= 1e-2 * scaled @ basis.T
        assert torch.allclose(model.weight, plain.weight, atol=1e-4), step


@pytest.mark.filterwarnings("ignore:the ranks were cut down")
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_updates_leave_the_knowledge_directions_alone(dtype: torch.dtype) -> None:
    """Check ‖ΔU‖ / ‖Δ‖ of every layer after 100 steps of a language model; Δ is the change of the weights."""
    model, linears, knowledge = language_model(dtype)
    before = weights_of(model)
    optimizer = make(
        model,
        rank_share=0.5,
        linears=linears,
        knowledge=knowledge,
        energy=0.9,
        lr=1e-2,
        refresh_every=20,
        stagger=5,
    )
    for step in range(100):
        optimizer.backward(token_losses(model, step))
        optimizer.step()
    for weight in optimizer.weights:
        change = weight.parts[0].parameter.detach() - before[weight.name]
        known = knowledge.directions(weight.name, 0.9, weight._known).to(dtype)
        assert known.shape[1] >= 4
        share = float((change @ known).norm() / change.norm())
        assert share <= (1e-6 if dtype == torch.float32 else 1e-7), weight.name
        assert float(change.norm() / before[weight.name].norm()) > 1e-2  # it did move


def test_without_knowledge_the_same_directions_do_change() -> None:
    """Control experiment: the property above does not hold for every update."""
    model, linears, knowledge = language_model()
    before = weights_of(model)
    optimizer = make(model, rank_share=0.25, linears=linears)
    for step in range(20):
        optimizer.backward(token_losses(model, step))
        optimizer.step()
    weight = optimizer.weights[0]
    change = weight.parts[0].parameter.detach() - before[weight.name]
    known = knowledge.directions(weight.name, 0.9, 16)
    assert float((change @ known).norm() / change.norm()) > 0.1


def test_every_refresh_leaves_orthonormal_bases_in_the_null_space() -> None:
    model, linears, knowledge = language_model()
    optimizer = make(model, rank_share=0.25, linears=linears, knowledge=knowledge, refresh_every=4, stagger=2)
    refreshed = 0
    for step in range(13):
        optimizer.backward(token_losses(model, step))
        optimizer.step()
        for weight in optimizer.weights:
            if weight.name not in optimizer.refreshed():
                continue
            refreshed += 1
            spaces = weight.subspaces
            shared = spaces.basis[:, spaces.columns["shared"]]
            for task in TASKS:
                own = spaces.basis[:, spaces.columns[task]]
                both = torch.cat([shared, own], dim=1)  # deflated: orthonormal together
                assert torch.allclose(both.T @ both, torch.eye(both.shape[1]), atol=5e-6)
            known = knowledge.directions(weight.name, 0.9, weight._known)
            assert float((known.T @ spaces.basis).abs().max()) < 5e-6
            figures = optimizer.refreshed()[weight.name]
            assert 0 < figures["energy"] <= 1 + 1e-5
            assert 0 <= figures["overlap"] <= 1 + 1e-5
            assert 0 <= figures["conflict"] <= 2
    assert refreshed == 4 * len(optimizer.weights)  # each at its first step and every fourth one


def test_a_step_descends() -> None:
    for settings in ({}, {"joint": False}, {"gate": "uniform"}, {"rank_scaling": True}, {"deflate": False}):
        model = network(torch.float64)
        optimizer = make(model, lr=1e-4, **settings)
        before = sum(regression(model, 0, torch.float64).values())
        optimizer.backward(regression(model, 0, torch.float64))
        optimizer.step()
        after = sum(regression(model, 0, torch.float64).values())
        assert float(after) < float(before), settings


class Stored(nn.Module):
    """A layer y = (W x + b) / unit with weights stored `unit` times as large: the same function for every unit."""

    def __init__(self, unit: float) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.linear = nn.Linear(12, 5, dtype=torch.float64)
        self.unit = unit
        with torch.no_grad():
            for parameter in self.parameters():
                parameter *= unit

    def forward(self, x: Tensor) -> Tensor:
        y: Tensor = self.linear(x) / self.unit
        return y


@pytest.mark.parametrize("relative", [True, False])
def test_only_relative_steps_are_the_same_in_every_unit_of_the_weights(relative: bool) -> None:
    losses = []
    for unit in (1.0, 32.0):
        model = Stored(unit)
        optimizer = make(model, relative=relative, lr=0.05, eps=1e-14, clip=None)
        found = [float(each["search"].detach()) for each in train(model, optimizer, range(12), torch.float64)]
        losses.append(torch.tensor(found))
    assert torch.allclose(losses[0], losses[1], rtol=1e-6) == relative
    assert losses[0][-1] < 0.9 * losses[0][0]


@pytest.mark.parametrize("settings", [{}, {"joint": False}, {"deflate": False}])
def test_parts_of_a_batch_add_up(settings: dict[str, Any]) -> None:
    """Gradient accumulation is exact, also for the gate, and also if a part of the batch has only one task."""
    models = [network(torch.float64) for _ in range(2)]
    whole, split = (make(model, clip=0.1, **settings) for model in models)
    for step in range(12):
        whole.backward(regression(models[0], step, torch.float64))
        whole.step()
        losses = regression(models[1], step, torch.float64)
        split.backward({task: 0.25 * loss for task, loss in losses.items()})
        for task in TASKS:
            split.backward({task: 0.75 * regression(models[1], step, torch.float64)[task]})
        split.step()
    for a, b in zip(models[0].parameters(), models[1].parameters(), strict=True):
        assert torch.allclose(a, b, rtol=0, atol=1e-9)


def test_a_task_that_is_missing_keeps_its_moments() -> None:
    model = network()
    optimizer = make(model, refresh_every=100)
    for _ in train(model, optimizer, range(3)):
        pass
    spaces = optimizer.weights[0].subspaces
    columns = spaces.columns["search"]
    kept = [spaces.first[:, columns].clone(), spaces.second[:, columns].clone()]
    shared = spaces.first[:, spaces.columns["shared"]].clone()
    optimizer.backward(regression(model, 5, tasks=("recommendation",)))
    optimizer.step()
    assert torch.equal(spaces.first[:, columns], kept[0])
    assert torch.equal(spaces.second[:, columns], kept[1])
    assert spaces.counts == {"shared": 4, "search": 3, "recommendation": 4}
    assert not torch.equal(spaces.first[:, spaces.columns["shared"]], shared)


def test_a_task_may_be_missing_when_bases_are_refreshed() -> None:
    model = network()
    optimizer = make(model, refresh_every=3)
    for step in range(9):
        tasks = TASKS if step % 3 else ("recommendation",)
        optimizer.backward(regression(model, step, tasks=tasks))
        optimizer.step()
        spaces = optimizer.weights[0].subspaces
        both = torch.cat([spaces.basis[:, spaces.columns[f]] for f in ("shared", "search")], dim=1)
        assert torch.allclose(both.T @ both, torch.eye(both.shape[1]), atol=5e-6)


def test_no_gradient_of_a_projected_weight_survives_the_backward_pass() -> None:
    model = network()
    optimizer = make(model, refresh_every=100, stagger=1)
    for _ in train(model, optimizer, range(2)):
        pass
    optimizer.backward(regression(model, 2))
    for weight in optimizer.weights:
        assert weight.parts[0].parameter.grad is None
        assert not weight.full
        assert weight.subspaces.projected.abs().sum() > 0


def test_only_one_group_holds_full_gradients_at_a_time() -> None:
    model, linears, _ = language_model()
    optimizer = make(model, linears=linears, rank_share=0.25, refresh_every=14, stagger=7)
    for step in range(15):
        optimizer.backward(token_losses(model, step))
        assert sum(bool(weight.full) for weight in optimizer.weights) == (
            2 if step < 7 or step % 2 == 0 else 0
        )
        optimizer.step()


@pytest.mark.parametrize(
    "settings",
    [{}, {"joint": False, "growth_limit": 1.01}, {"gate": "prior", "transport": False}, {"relative": True}],
)
def test_a_saved_state_goes_on_bit_by_bit(settings: dict[str, Any], tmp_path: Path) -> None:
    model = network()
    optimizer = make(model, refresh_every=4, stagger=2, **settings)
    for _ in train(model, optimizer, range(7)):
        pass
    torch.save({"model": model.state_dict(), "optimizer": optimizer.state_dict()}, tmp_path / "state.pt")
    for _ in train(model, optimizer, range(7, 15)):
        pass
    again = network(seed=5)
    resumed = make(again, refresh_every=4, stagger=2, **settings)
    state = torch.load(tmp_path / "state.pt", weights_only=True)
    again.load_state_dict(state["model"])
    resumed.load_state_dict(state["optimizer"])
    for _ in train(again, resumed, range(7, 15)):
        pass
    for a, b in zip(model.parameters(), again.parameters(), strict=True):
        assert torch.equal(a, b)
    assert torch.equal(optimizer.gate.weights(), resumed.gate.weights())


def test_clipping_bounds_the_first_moment() -> None:
    model = network()
    optimizer = make(model, clip=1e-3)
    optimizer.backward({task: 100 * loss for task, loss in regression(model, 0).items()})
    optimizer.step()
    spaces = [weight.subspaces for weight in optimizer.weights]
    for family in ("shared", *TASKS):
        norm = torch.stack([s.first[:, s.columns[family]].norm() for s in spaces]).norm() / (1 - BETAS[0])
        assert float(norm) <= 1e-3 * (1 + 1e-5)
    assert optimizer.figures()["gradient_norm"] > 1  # as it was


def test_a_learning_rate_schedule_drives_all_parameters() -> None:
    model = network()
    optimizer = make(model)
    schedule = torch.optim.lr_scheduler.LambdaLR(optimizer, lambda step: 0.0 if step == 0 else 1.0)
    before = weights_of(model)
    for moves in (False, True):
        for _ in train(model, optimizer, range(1)):
            schedule.step()
        changed = [not torch.equal(p, before[name]) for name, p in model.named_parameters()]
        assert all(changed) if moves else not any(changed)


def test_mistakes_are_named() -> None:
    model = network()
    with pytest.raises(GemsError, match="count above 0"):
        make(model, rank=-1)
    with pytest.raises(GemsError, match="share"):
        make(model, rank=1.5)
    with pytest.raises(GemsError, match=r"write rank_share=0\.25 for a share"):
        make(model, rank=0.25)
    with pytest.raises(GemsError, match=r"task_rank 1\.0 must be a count"):
        make(model, task_rank=1.0)
    with pytest.raises(GemsError, match="rank or rank_share, not both"):
        make(model, rank=4, rank_share=0.25)
    with pytest.raises(GemsError, match="task_rank or task_rank_share, not both"):
        make(model, task_rank=4, task_rank_share=0.25)
    with pytest.raises(GemsError, match="write rank for a count"):
        make(model, rank_share=4)
    with pytest.raises(GemsError, match=r"give rank .* or rank_share"):
        GEMS(model, lr=1e-2)
    with pytest.raises(GemsError, match="differ"):
        make(model, tasks=("a", "a"))
    with pytest.raises(GemsError, match="gate"):
        make(model, gate="learned")
    with pytest.raises(GemsError, match=r"a and b are one weight"):
        make(model, linears={"a": model[0], "b": model[0]})
    with pytest.raises(GemsError, match="is no linear layer"):
        make(model, linears={"1.weight": model[1]})
    with pytest.raises(GemsError, match=r"float16; small updates need"):
        make(network(torch.float16))
    with pytest.raises(GemsError, match="no trainable linear"):
        make(nn.Embedding(3, 4))
    optimizer = make(model)
    with pytest.raises(GemsError, match="unknown task 'buy'"):
        optimizer.backward({"buy": regression(model, 0)["search"]})
    with pytest.raises(GemsError, match="by task"):
        optimizer.backward(regression(model, 0)["search"])
    with pytest.raises(GemsError, match="told apart"):
        regression(model, 0)["search"].backward()


def test_a_state_of_another_configuration_is_refused() -> None:
    state = make(network()).state_dict()
    with pytest.raises(GemsError, match=r"0\.weight.*another configuration"):
        make(network(), rank=2).load_state_dict(state)
    with pytest.raises(GemsError, match="other tasks"):
        make(network(), tasks=("a", "b")).load_state_dict(state)


def test_a_knowledge_basis_of_another_backbone_is_refused() -> None:
    model, linears, knowledge = language_model()
    with torch.no_grad():
        linears["model.layers.0.self_attn.q_proj.weight"].weight[0, 0] += 1
    with pytest.raises(GemsError, match="other weights"):
        make(model, linears=linears, knowledge=knowledge)
    other = KnowledgeBasis({}, {}, lambda site: torch.zeros(0), "", 0)
    with pytest.raises(GemsError, match="another backbone"):
        make(model, linears=linears, knowledge=other)


def test_the_state_is_as_large_as_promised() -> None:
    """Expected fp32 numbers: V n r + 2 n r/2, moments 2 m r + 2 · 2 m r/2, gradients m r + 2 m r/2."""
    layer = nn.Linear(64, 48, bias=False)
    optimizer = GEMS(layer, TASKS, lr=1e-3, rank=8)
    assert optimizer.costs()["state_bytes"] == 4 * (64 * 16 + 2 * 48 * 16)
    assert optimizer.costs()["gradient_bytes"] == 4 * 48 * 16
    optimizer.close()
    learning = GEMS(layer, TASKS, lr=1e-3, rank=8, gate="hypergradient")
    assert learning.costs()["gradient_bytes"] == 4 * 48 * (16 + 8)  # and the last task updates
    fixed = GEMS(nn.Linear(64, 48, bias=False), TASKS, lr=1e-3, rank=8, gate="prior")
    assert fixed.costs()["gradient_bytes"] == 4 * 48 * 16
