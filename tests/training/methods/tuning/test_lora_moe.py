"""LoRA experts behind a router: the formula, training beside a frozen base, and no export."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from test_lora import (
    ARCHS,
    BATCHES,
    IDS,
    check_bad_gradients_change_nothing,
    check_costs,
    check_resume,
    directions,
    equal,
    frozen_model,
    only,
    rows_of,
    snapshot,
    train_step,
)
from torch import nn
from transformers import PreTrainedModel

from index.sequence.events import Task
from training.errors import UserError
from training.methods.tuning.lora import block_linears
from training.methods.tuning.lora_moe import ExpertLinear, LoraMoeTuning


def make(arch: str = "llama", **options: Any) -> tuple[PreTrainedModel, LoraMoeTuning]:
    model, rows = frozen_model(arch)
    settings = {
        "rank": 2,
        "experts": 3,
        "alpha": 4.0,
        "learning_rate": 1e-2,
        "weight_decay": 0.01,
        "clip": 1.0,
    }
    return model, LoraMoeTuning(model, rows, **settings | options)  # type: ignore[arg-type]


def experts_of(model: PreTrainedModel) -> list[ExpertLinear]:
    return [module for module in model.modules() if isinstance(module, ExpertLinear)]


def test_the_layer_is_its_formula() -> None:
    torch.manual_seed(0)
    n, m, rank, experts, alpha = 5, 7, 2, 3, 6.0
    layer = ExpertLinear(nn.Linear(n, m), rank=rank, experts=experts, alpha=alpha)
    for p in (layer.router, layer.up):
        nn.init.normal_(p)
    x = torch.randn(4, 6, n)
    found = layer(x)
    for index in [(0, 0), (1, 5), (3, 2)]:
        token = x[index]
        gate = torch.exp(layer.router @ token)
        gate = gate / gate.sum()
        expected = layer.base.weight @ token + layer.base.bias
        for e in range(experts):
            a, b = layer.down[e * rank : (e + 1) * rank], layer.up[:, e * rank : (e + 1) * rank]
            expected = expected + alpha / rank * gate[e] * (b @ (a @ token))
        assert torch.allclose(found[index], expected, rtol=1e-5, atol=1e-5)


def test_half_precision_weights_keep_their_kind() -> None:
    layer = ExpertLinear(nn.Linear(5, 7).to(torch.bfloat16), rank=2, experts=3, alpha=4.0)
    nn.init.normal_(layer.up)
    assert layer(torch.randn(4, 5, dtype=torch.bfloat16)).dtype == torch.bfloat16
    assert {p.dtype for p in (layer.router, layer.down, layer.up)} == {torch.float32}


@pytest.mark.parametrize("arch", ARCHS)
def test_every_linear_map_of_the_blocks_has_experts_and_nothing_changes_at_first(arch: str) -> None:
    plain, _ = frozen_model(arch)
    model, _ = make(arch)
    assert torch.equal(model(IDS).logits, plain(IDS).logits)
    assert len(experts_of(model)) == len(block_linears(plain))
    assert all(not bool(layer.router.any()) for layer in experts_of(model))


@pytest.mark.parametrize("arch", ARCHS)
def test_training_lowers_the_loss_and_leaves_the_base_weights(arch: str) -> None:
    model, method = make(arch)
    before = snapshot(model)
    losses = [train_step(method, model, BATCHES[0])["loss"] for _ in range(20)]
    assert losses[-1] < 0.8 * losses[0]
    after = snapshot(model)
    moved = {name for name in after if not torch.equal(before[name], after[name])}
    expected = {name for name in after if name.endswith((".router", ".down", ".up", ".rows"))}
    assert moved == expected
    check_costs(method, sum(after[name].numel() for name in expected))


def test_the_routing_depends_on_the_token() -> None:
    model, method = make()
    for _ in range(5):
        train_step(method, model, BATCHES[0])
    layer = experts_of(model)[0]
    gates = (torch.randn(50, layer.base.in_features) @ layer.router.detach().T).softmax(dim=-1)
    assert float(gates.std(dim=0).min()) > 1e-3


def test_gradients_of_parts_add_up() -> None:
    found = []
    for cut in (lambda batch: batch, rows_of):
        model, method = make(clip=1e9)
        with torch.no_grad():
            for layer in experts_of(model):  # so that A and the router have gradients, too
                layer.up.fill_(0.01)
        train_step(method, model, cut(BATCHES[0]))
        found.append(directions(method))
    assert all(float(g.norm()) > 0 for g in found[0])
    assert all(torch.allclose(a, b, rtol=1e-3, atol=1e-4) for a, b in zip(*found, strict=True))


def test_a_batch_without_one_task_trains_on_the_other() -> None:
    model, method = make()
    batch = only(BATCHES[0], Task.RECOMMENDATION)
    losses = [train_step(method, model, batch)["loss"] for _ in range(10)]
    assert losses[-1] < losses[0]


def test_a_resumed_run_goes_on_bit_by_bit() -> None:
    (model, method), (twin_model, twin) = make(), make()
    check_resume(method, model, twin, twin_model)


def test_gradients_that_are_not_finite_change_nothing() -> None:
    (model, method), (twin_model, twin) = make(), make()
    check_bad_gradients_change_nothing(method, twin, model, twin_model)


def test_a_router_cannot_be_exported() -> None:
    model, method = make()
    before = snapshot(model)
    assert not method.exportable
    with pytest.raises(UserError, match="router"):
        method.merge()
    assert equal(snapshot(model), before)
