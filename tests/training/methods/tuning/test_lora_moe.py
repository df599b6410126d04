"""LoRA experts behind a router: the formula, training beside a frozen base, the balance loss, and no export."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import numpy as np
import pytest
import torch
from support.batches import CATALOGUE, ENCODER, VOCABULARY
from support.bundles import make_model
from support.histories import histories
from support.t5 import make_t5
from support.walks import settings
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

from index.sequence.encoder import Sample
from index.sequence.events import Event, Task
from training.config import ConfigError
from training.errors import UserError
from training.loop.losses import item_losses
from training.loop.pairs import Pairs
from training.loop.parts import Part, pad, parts_of, samples_of
from training.methods.balance import balance_loss, mass_of_samples, numbered
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


def two_kinds(start: int | None = None) -> list[Sample]:
    """Return samples of knowledge, titles of identifiers, and of a task, histories."""
    titles = [ENCODER.writing([Event(k)], CATALOGUE[k].title, "item", Task.SEARCH, start) for k in range(12)]
    taken = histories(12)
    if start is None:
        others = [ENCODER.sample(history[:4]) for history in taken]
    else:
        others = [Pairs(ENCODER, start, 1).pair(history[:3], history[-1]) for history in taken]
    return [*(replace(sample, knowledge=True) for sample in titles), *others]


def mass_on_the_first_half(method: LoraMoeTuning, model: PreTrainedModel, part: Part) -> tuple[float, float]:
    """Return the routers' mass on the half for knowledge: of samples of knowledge, and of others."""
    samples = samples_of(part, 1.0)
    method.observe(samples)
    with torch.no_grad():
        item_losses(model, VOCABULARY, part, "level")
    knowledge, sample, read = numbered(samples)
    halves = []
    for name, layer in method.layers.items():
        assert layer.gate is not None
        place = read if read is not None and name.startswith("encoder.") else sample
        if len(place) == layer.gate.flatten(0, -2).shape[0]:
            mass = mass_of_samples(layer.gate.flatten(0, -2), place, len(knowledge))
            halves.append(mass[:, : layer.experts // 2].sum(1))
    mean = torch.stack(halves).mean(0)
    return float(mean[knowledge].mean()), float(mean[~knowledge].mean())


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


def test_the_balance_loss_is_its_formula_and_least_at_the_shares_that_it_names() -> None:
    rng = np.random.default_rng(0)
    mass = rng.dirichlet(np.ones(4), 6).astype(np.float32)
    knowledge = np.array([True, False, True, True, False, False])
    weighted = mass.copy()
    for s, e in np.ndindex(mass.shape):
        weighted[s, e] *= 1 - 0.3 if (e < 2) == knowledge[s] else 1 + 0.3
    expected = weighted.var(ddof=1) / weighted.mean() ** 2
    found = balance_loss(torch.from_numpy(mass), torch.from_numpy(knowledge), 0.3)
    assert float(found) == pytest.approx(float(expected), rel=1e-4)
    own = np.where((np.arange(4) < 2) == knowledge[:, None], (1 + 0.3) / 4, (1 - 0.3) / 4)
    assert float(balance_loss(torch.from_numpy(own), torch.from_numpy(knowledge), 0.3)) < 1e-9 < float(found)


def test_masses_of_packed_samples_are_those_of_each_alone() -> None:
    samples = two_kinds()
    torch.manual_seed(0)
    rows = torch.randn(VOCABULARY.size, 4)

    def masses(part: Part) -> list[list[float]]:
        kinds = samples_of(part, 1.0)
        knowledge, number, _ = numbered(kinds)
        gate = rows[part.ids].softmax(-1).flatten(0, 1)
        found = mass_of_samples(gate, number, len(knowledge))
        return [[float(k), *m] for k, m in zip(knowledge, found.tolist(), strict=True)]

    (packed,) = parts_of(samples, 10**6, 1)
    assert len(packed.ids) < len(samples)
    alone = sorted(each for sample in samples for each in masses(pad([sample])))
    assert np.allclose(sorted(masses(packed)), alone, atol=1e-5)
    assert np.allclose(sorted(masses(pad(samples))), alone, atol=1e-5)


@pytest.mark.parametrize("arch", ["llama", "t5"])
def test_the_mass_on_the_half_for_knowledge_differs_by_kind_with_the_balance_loss_alone(arch: str) -> None:
    differences = {}
    for balance in (0.0, 1.0):
        torch.manual_seed(0)
        model = make_t5(VOCABULARY.size) if arch == "t5" else make_model(VOCABULARY.size)
        method = LoraMoeTuning(
            model, [], rank=2, experts=4, alpha=4.0, learning_rate=1e-2, weight_decay=0.0, clip=1.0,
            layers="feed-forward", balance=balance, delta=0.5,
        )  # fmt: skip
        part = pad(two_kinds(0 if arch == "t5" else None))
        for _ in range(25):
            method.observe(samples_of(part, 1.0))
            losses = item_losses(model, VOCABULARY, part, "level")
            method.backward({task: loss / 12 for task, loss in losses.items()}, dict.fromkeys(losses, 0.5))
            figures = method.step(1e-2)
        assert ("imbalance" in figures) == bool(balance)
        method._balance = 1.0  # so that it looks
        knowledge, tasks = mass_on_the_first_half(method, model, part)
        differences[balance] = knowledge - tasks
    assert differences[1.0] > 0.2 > 0.1 > abs(differences[0.0])


def test_feed_forward_layers_are_those_outside_of_attention() -> None:
    for model in (make_model(60, "llama"), make_model(60, "gpt-neox"), make_t5(60)):
        every, some = block_linears(model), block_linears(model, "feed-forward")
        assert set(some) < set(every)
        assert all("mlp" in name or "DenseReluDense" in name for name in some)
        assert not any("mlp" in name or "DenseReluDense" in name for name in set(every) - set(some))


def test_an_odd_number_of_experts_has_no_halves() -> None:
    with pytest.raises(ConfigError, match=r"lora\.experts is 3"):
        settings({"lora": {"experts": 3, "balance": 0.1}})
