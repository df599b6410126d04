"""Weightings of the torchjd library, each compared with the definition of its paper by brute force."""

from __future__ import annotations

import importlib.util
from typing import Any

import pytest
import torch
from support.batches import VOCABULARY
from support.bundles import make_model
from test_lora import BATCHES, check_bad_gradients_change_nothing, check_resume, train_step
from torch import Tensor
from transformers import PreTrainedModel

from training.config import TrainConfig
from training.errors import UserError
from training.methods.method import Method
from training.methods.registry import check_method, make_method
from training.methods.tuning.cagrad import C
from training.methods.tuning.nash_mtl import root

METHODS = ["upgrad", "cagrad", "aligned-mtl", "nash-mtl"]
every = pytest.mark.parametrize("name", METHODS)


def make(name: str, seed: int = 0) -> tuple[PreTrainedModel, Method]:
    model = make_model(VOCABULARY.size).train()
    config = TrainConfig.load(None, {"method": name, "seed": seed, "backbone.name": "scratch"})
    return model, make_method(model, config, model.config.vocab_size)


def weights_of(name: str, gradients: Tensor) -> Tensor:
    """Return w for gradients, float64 [tasks, d]."""
    method: Any = make(name)[1]
    found: Tensor = method._weighting(gradients @ gradients.T)
    return found


def pairs_of_gradients() -> list[Tensor]:
    rng = torch.Generator().manual_seed(0)
    drawn = [torch.randn(2, 3, generator=rng, dtype=torch.float64) for _ in range(12)]
    return [*drawn, torch.tensor([[5.0, 0, 0], [-1.0, 0.3, 0]], dtype=torch.float64)]


def test_upgrad_steps_along_the_projections_onto_what_no_task_loses_by() -> None:
    angles = torch.linspace(0, 2 * torch.pi, 20_000, dtype=torch.float64)
    for pair in pairs_of_gradients():
        plane = root(pair @ pair.T)  # the same inner products, in the plane
        step = weights_of("upgrad", plane) @ plane
        assert (plane @ step > -1e-3 * plane.norm() ** 2).all()  # no task loses
        circle = torch.stack([angles.cos(), angles.sin()], 1)
        good = circle[(circle @ plane.T >= -1e-9).all(1)]  # the cone, by brute force
        projections = []
        for gradient in plane:
            lengths = (good @ gradient).clamp(min=0)
            nearest = ((lengths[:, None] * good - gradient) ** 2).sum(1).argmin()
            projections.append(lengths[nearest] * good[nearest])
        assert torch.allclose(step, torch.stack(projections).sum(0), atol=5e-3 * float(plane.norm()))


def test_cagrad_helps_the_worst_task_most_within_its_ball() -> None:
    rng = torch.Generator().manual_seed(1)
    for pair in pairs_of_gradients():
        step = weights_of("cagrad", pair) @ pair / 2
        mean = pair.mean(0)
        assert (step - mean).norm() <= C * mean.norm() * 1.001
        others = torch.randn(5000, 3, generator=rng, dtype=torch.float64)
        others = mean + C * mean.norm() * others / others.norm(dim=1, keepdim=True)
        assert (pair @ step).min() >= (others @ pair.T).amin(1).max() - 0.02 * pair.norm() ** 2


def test_aligned_mtl_gives_the_principal_components_one_length() -> None:
    for pair in pairs_of_gradients():
        # the weights are linear in the tasks' preference, (1/2, 1/2); the aligned gradients are B g
        values, vectors = torch.linalg.eigh(pair @ pair.T)
        balance = vectors @ (values.min().sqrt() / values.sqrt()).diag() @ vectors.T
        assert torch.allclose(weights_of("aligned-mtl", pair), balance.sum(0), atol=1e-3)


def test_nash_mtl_is_the_bargaining_solution_up_to_its_length() -> None:
    for pair in pairs_of_gradients():
        gram = pair @ pair.T
        found = weights_of("nash-mtl", pair)
        balance = found * (gram @ found)  # (Gᵀ G) α = 1 / α
        assert float(balance.min() / balance.max()) > 0.95
        assert (found @ gram @ found).sqrt() <= 1.001


@every
def test_a_task_without_gradient_leaves_the_other_as_it_is(name: str) -> None:
    gradients = torch.tensor([[3.0, 1.0], [0.0, 0.0]], dtype=torch.float64)
    assert torch.allclose(weights_of(name, gradients) @ gradients, gradients[0])


@pytest.mark.parametrize("name", ["upgrad", "cagrad", "aligned-mtl"])
def test_tasks_that_agree_have_the_step_of_their_sum(name: str) -> None:
    gradients = torch.eye(2, dtype=torch.float64) * 2
    step, plain = weights_of(name, gradients) @ gradients, gradients.sum(0)
    assert float(torch.cosine_similarity(step, plain, dim=0)) > 0.999
    if name != "cagrad":  # whose ball lets it go a little further
        assert torch.allclose(step, plain, atol=1e-2)


@every
def test_training_lowers_the_loss(name: str) -> None:
    model, method = make(name)
    losses = [train_step(method, model, BATCHES[0])["loss"] for _ in range(12)]
    assert losses[-1] < 0.95 * losses[0]


@every
def test_a_resumed_run_goes_on_bit_by_bit(name: str) -> None:
    (model, method), (twin_model, twin) = make(name), make(name, seed=7)
    check_resume(method, model, twin, twin_model)


@every
def test_gradients_that_are_not_finite_change_nothing(name: str) -> None:
    (model, method), (twin_model, twin) = make(name), make(name)
    check_bad_gradients_change_nothing(method, twin, model, twin_model)


@every
def test_a_library_that_is_missing_is_named_with_the_remedy(
    name: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    config = TrainConfig.load(None, {"method": name, "backbone.name": "scratch"})
    check_method(torch.nn.Linear(1, 1), config)
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: None if name == "cvxpy" else object())
    with pytest.raises(UserError, match=rf"{name}.* needs cvxpy: pip install 'gems-sr\[torchjd\]'"):
        check_method(torch.nn.Linear(1, 1), config)
