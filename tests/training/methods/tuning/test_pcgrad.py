"""PCGrad: the surgery compared with its definition, over all weights together, and steps with it."""

from __future__ import annotations

import math
from typing import Any

import pytest
import torch
from support.batches import VOCABULARY
from support.bundles import make_model
from test_lora import (
    ARCHS,
    BATCHES,
    check_bad_gradients_change_nothing,
    check_costs,
    check_resume,
    directions,
    losses_of,
    only,
    rows_of,
    shares_of,
    train_step,
)
from torch import Tensor, nn
from transformers import PreTrainedModel

from index.sequence.events import Task
from training.loop.batches import Batch
from training.methods.adamw import AdamWTuning, split_by_decay
from training.methods.task_gradients import TaskGradientTuning, combine, inner_products
from training.methods.tuning.pcgrad import Surgery, surgery

HALF = {Task.SEARCH: 0.5, Task.RECOMMENDATION: 0.5}
SETTINGS: dict[str, Any] = {"learning_rate": 1e-2, "weight_decay": 0.01, "clip": 1.0}


class Plane(nn.Module):
    """Two weights, each a tensor of its own."""

    def __init__(self) -> None:
        super().__init__()
        self.x = nn.Parameter(torch.zeros(1))
        self.y = nn.Parameter(torch.zeros(1))

    def along(self, x: float, y: float) -> Tensor:
        return (x * self.x + y * self.y).sum()


def pcgrad(model: nn.Module, *, seed: int = 0, **settings: Any) -> TaskGradientTuning:
    return TaskGradientTuning(model, Surgery(seed), **settings)


def make(arch: str = "llama", **options: Any) -> tuple[PreTrainedModel, TaskGradientTuning]:
    model = make_model(VOCABULARY.size, arch).train()
    return model, pcgrad(model, **SETTINGS | options)


def gradients_of(model: PreTrainedModel, batch: Batch) -> dict[Task, list[Tensor]]:
    """Return the gradient of share · loss for each task, from plain autograd."""
    losses, shares = losses_of(model, batch.parts[0], batch), shares_of(batch)
    return {
        task: list(torch.autograd.grad(shares[task] * loss, list(model.parameters()), retain_graph=True))
        for task, loss in losses.items()
    }


def flat(tensors: list[Tensor]) -> Tensor:
    return torch.cat([t.flatten() for t in tensors])


def by_the_book(gradients: list[Tensor], generator: torch.Generator) -> list[Tensor]:
    """Run Algorithm 1 of the paper on flat vectors."""
    result = []
    for i, gradient in enumerate(gradients):
        changed = gradient.clone()
        for j in torch.randperm(len(gradients), generator=generator).tolist():
            if j != i and changed @ gradients[j] < 0:
                changed -= (changed @ gradients[j]) / (gradients[j] @ gradients[j]) * gradients[j]
        result.append(changed)
    return result


def test_two_conflicting_gradients_of_the_plane() -> None:
    """g_1 = (1, 0), g_2 = (−1, 1): g_1^PC = (½, ½), g_2^PC = (0, 1). Tensor by tensor it would be (0, 1) in all."""
    plane = Plane()
    method = pcgrad(plane, learning_rate=0.1, weight_decay=0.0, clip=100.0)
    method.backward({Task.SEARCH: plane.along(2, 0), Task.RECOMMENDATION: plane.along(-2, 2)}, HALF)
    figures = method.step(0.1)
    assert flat(directions(method)).tolist() == pytest.approx([0.5, 1.5])
    assert figures == pytest.approx({"gradient_norm": math.sqrt(2.5), "conflict.cosine": -1 / math.sqrt(2)})
    assert plane.x.grad is None


def test_opposite_gradients_leave_nothing() -> None:
    plane = Plane()
    method = pcgrad(plane, learning_rate=0.1, weight_decay=0.0, clip=100.0)
    method.backward({Task.SEARCH: plane.along(3, 1), Task.RECOMMENDATION: plane.along(-6, -2)}, HALF)
    figures = method.step(0.1)
    assert figures == pytest.approx({"gradient_norm": 0.0, "conflict.cosine": -1.0}, abs=1e-6)


@pytest.mark.parametrize("tasks", [1, 2, 3, 5])
def test_the_surgery_is_that_of_the_paper(tasks: int) -> None:
    changed = 0
    for seed in range(50):
        torch.manual_seed(seed)
        gradients = [[torch.randn(3), torch.randn(2, 2)] for _ in range(tasks)]
        generators = [torch.Generator().manual_seed(seed) for _ in range(2)]
        coefficients = surgery(inner_products(gradients), generators[0])
        expected = by_the_book([flat(g) for g in gradients], generators[1])
        found = coefficients.float() @ torch.stack([flat(g) for g in gradients])
        assert torch.allclose(found, torch.stack(expected), rtol=1e-4, atol=1e-4)
        changed += int(not torch.equal(coefficients, torch.eye(tasks, dtype=torch.float64)))
        if tasks == 2:
            others = flat(gradients[1]), flat(gradients[0])
            assert all(float(g @ other) > -1e-4 for g, other in zip(found, others, strict=True))
        weights = coefficients.sum(dim=0)
        combined = [combine(list(tensors), weights) for tensors in zip(*gradients, strict=True)]
        assert torch.allclose(flat(combined), torch.stack(expected).sum(dim=0), rtol=1e-4, atol=1e-4)
    assert (changed > 10) == (tasks > 1)


def test_the_order_is_drawn() -> None:
    """Three tasks in conflict: the orders lead to different gradients, and the seed decides."""
    gradients = [[torch.tensor(g)] for g in ([1.0, 0.0], [-1.0, 1.0], [-1.0, -2.0])]
    gram = inner_products(gradients)
    found = {tuple(surgery(gram, torch.Generator().manual_seed(s)).flatten().tolist()) for s in range(20)}
    assert len(found) > 1


def test_a_gradient_too_small_to_square_is_not_divided_by() -> None:
    gradients = [[torch.tensor([1.0, 0.0])], [torch.tensor([-1e-30, 0.0])]]
    coefficients = surgery(inner_products(gradients), torch.Generator())
    assert torch.isfinite(coefficients).all()
    assert coefficients[0].tolist() == [1, 0]


@pytest.mark.parametrize("arch", ARCHS)
@pytest.mark.parametrize("sign", [1, -1])
def test_a_step_goes_along_the_gradients_after_surgery(arch: str, sign: int) -> None:
    """The same batch gives agreement, and conflict if the sign of one loss is reversed."""
    model, method = make(arch, clip=1e9)
    batch = BATCHES[0]
    gradients = gradients_of(model, batch)
    first, second = flat(gradients[Task.SEARCH]), sign * flat(gradients[Task.RECOMMENDATION])
    losses = losses_of(model, batch.parts[0], batch)
    losses[Task.RECOMMENDATION] = sign * losses[Task.RECOMMENDATION]
    method.backward(losses, shares_of(batch))
    figures = method.step(1e-2)
    cosine = float(torch.cosine_similarity(first, second, dim=0))
    assert (cosine > 0.01) == (sign > 0)
    assert abs(cosine) > 0.01
    assert figures["conflict.cosine"] == pytest.approx(cosine, abs=1e-4)
    expected = first + second if sign > 0 else sum(by_the_book([first, second], torch.Generator()))
    assert isinstance(expected, Tensor)
    assert figures["gradient_norm"] == pytest.approx(float(expected.norm()), rel=1e-4)
    parameters = list(model.parameters())
    matrices, others = split_by_decay(parameters)
    order = [next(k for k, p in enumerate(parameters) if p is q) for q in [*matrices, *others]]
    pieces = expected.split([p.numel() for p in parameters])
    assert torch.allclose(
        flat(directions(method)), torch.cat([pieces[k] for k in order]), rtol=1e-3, atol=1e-4
    )


def test_where_the_tasks_agree_it_is_plain_adamw() -> None:
    model, method = make()
    plain_model = make_model(VOCABULARY.size).train()
    plain = AdamWTuning(*split_by_decay(plain_model.parameters()), **SETTINGS)
    figures = train_step(method, model, BATCHES[0])
    assert figures.pop("conflict.cosine") > 0
    assert train_step(plain, plain_model, BATCHES[0]) == pytest.approx(figures, rel=1e-4)
    pairs = zip(directions(method), directions(plain), strict=True)
    assert all(torch.allclose(a, b, rtol=1e-3, atol=1e-5) for a, b in pairs)


@pytest.mark.parametrize("arch", ARCHS)
def test_training_lowers_the_loss(arch: str) -> None:
    model, method = make(arch)
    losses = [train_step(method, model, BATCHES[0])["loss"] for _ in range(20)]
    assert losses[-1] < 0.8 * losses[0]
    check_costs(method, sum(p.numel() for p in model.parameters()), gradients=2)


def test_gradients_of_parts_add_up() -> None:
    found = []
    for cut in (lambda batch: batch, rows_of):
        model, method = make(clip=1e9)
        batch = cut(BATCHES[0])
        for part in batch.parts:  # in conflict, so that the surgery sees whole gradients or fails
            losses = losses_of(model, part, batch)
            signs = {Task.SEARCH: 1, Task.RECOMMENDATION: -1}
            method.backward({task: signs[task] * loss for task, loss in losses.items()}, shares_of(batch))
        assert method.step(1e-2)["conflict.cosine"] < 0
        found.append(flat(directions(method)))
    assert len(rows_of(BATCHES[0]).parts) > 1
    assert torch.allclose(found[0], found[1], rtol=1e-3, atol=1e-4)


@pytest.mark.parametrize("task", list(Task))
def test_a_batch_without_one_task_is_a_step_of_the_other(task: Task) -> None:
    model, method = make(clip=1e9)
    batch = only(BATCHES[0], task)
    expected = flat(gradients_of(model, batch)[task]).norm()
    figures = train_step(method, model, batch)
    assert "conflict.cosine" not in figures
    assert figures["gradient_norm"] == pytest.approx(float(expected), rel=1e-4)


def test_processes_that_share_a_batch_step_like_one() -> None:
    """One process has only searches, the other only recommendations; both learn of the conflict."""
    whole = Plane()
    searches, recommendations = Plane(), Plane()
    sent: list[list[Tensor]] = []

    def add(tensors: list[Tensor]) -> None:
        for tensor, other in zip(tensors, sent[0], strict=True):
            tensor.add_(other)

    settings: dict[str, Any] = {"learning_rate": 0.1, "weight_decay": 0.0, "clip": 100.0}
    one = pcgrad(whole, **settings)
    one.backward({Task.SEARCH: whole.along(2, 0), Task.RECOMMENDATION: whole.along(-2, 2)}, HALF)
    first = pcgrad(searches, reduce=lambda ts: sent.append([t.clone() for t in ts]), **settings)
    first.backward({Task.SEARCH: searches.along(2, 0)}, HALF)
    assert "conflict.cosine" not in first.step(0.1)
    second = pcgrad(recommendations, reduce=add, **settings)
    second.backward({Task.RECOMMENDATION: recommendations.along(-2, 2)}, HALF)
    assert second.step(0.1) == one.step(0.1)
    assert len(sent) == 1


def test_a_resumed_run_goes_on_bit_by_bit() -> None:
    (model, method), (twin_model, twin) = make(), make(seed=7)
    check_resume(method, model, twin, twin_model)
    states = [m.state_dict()["weighting"]["generator"] for m in (method, twin)]
    assert torch.equal(*states)
    assert not torch.equal(states[0], make()[1].state_dict()["weighting"]["generator"])


def test_gradients_that_are_not_finite_change_nothing() -> None:
    (model, method), (twin_model, twin) = make(), make()
    check_bad_gradients_change_nothing(method, twin, model, twin_model)
