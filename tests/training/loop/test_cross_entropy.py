"""The cross-entropy by blocks: exactly PyTorch's, and its gradients too, whatever is frozen."""

from __future__ import annotations

import pytest
import torch
import torch.nn.functional as F

from training.loop import cross_entropy
from training.loop.cross_entropy import LEAST, summed_cross_entropy


@pytest.fixture(autouse=True)
def small_blocks(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(cross_entropy, "BLOCK", 1)  # then a block has LEAST states


def drawn(dtype: torch.dtype = torch.float64) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    """Return states of several blocks and a rest, vectors, and targets."""
    torch.manual_seed(0)
    count = 2 * LEAST + 7
    states = torch.randn(count, 6, dtype=dtype, requires_grad=True)
    vectors = torch.randn(11, 6, dtype=dtype, requires_grad=True)
    return states, vectors, torch.randint(11, (count,))


def test_loss_and_gradients_are_those_of_pytorch() -> None:
    states, vectors, targets = drawn()
    ours = summed_cross_entropy(states, vectors, targets)
    theirs = F.cross_entropy(states @ vectors.T, targets, reduction="sum")
    assert torch.allclose(ours, theirs, atol=1e-12)
    gradients = [torch.autograd.grad(3 * loss, (states, vectors)) for loss in (ours, theirs)]
    for one, other in zip(*gradients, strict=True):
        assert torch.allclose(one, other, atol=1e-12)


def test_the_graph_can_be_walked_twice() -> None:
    states, vectors, targets = drawn()
    loss = summed_cross_entropy(states, vectors, targets)
    loss.backward(retain_graph=True)
    once = states.grad.clone()
    loss.backward()
    assert torch.allclose(states.grad, 2 * once, atol=1e-12)


@pytest.mark.parametrize("frozen", ["states", "vectors", "both"])
def test_what_is_frozen_gets_no_gradient(frozen: str) -> None:
    states, vectors, targets = drawn()
    states.requires_grad_(frozen == "vectors")
    vectors.requires_grad_(frozen == "states")
    loss = summed_cross_entropy(states, vectors, targets)
    assert torch.allclose(loss, F.cross_entropy(states @ vectors.T, targets, reduction="sum"), atol=1e-12)
    assert loss.requires_grad == (frozen != "both")
    if frozen != "both":
        loss.backward()
        learned = states if frozen == "vectors" else vectors
        expected = torch.autograd.grad(
            F.cross_entropy(states @ vectors.T, targets, reduction="sum"), learned
        )[0]
        assert torch.allclose(learned.grad, expected, atol=1e-12)


def test_large_logits_neither_overflow_nor_lose_the_target() -> None:
    states, vectors, targets = drawn(torch.float32)
    loss = summed_cross_entropy(1000 * states, vectors, targets)
    expected = F.cross_entropy(1000 * states.double() @ vectors.double().T, targets, reduction="sum")
    assert float(loss.detach()) == pytest.approx(float(expected.detach()), rel=1e-5)
    loss.backward()
    assert bool(torch.isfinite(states.grad).all() & torch.isfinite(vectors.grad).all())


def test_half_precision_takes_the_softmax_in_float32() -> None:
    states, vectors, targets = drawn(torch.bfloat16)
    loss = summed_cross_entropy(states, vectors, targets)
    assert loss.dtype == torch.float32
    expected = F.cross_entropy((states @ vectors.T).float(), targets, reduction="sum")
    assert float(loss.detach()) == pytest.approx(float(expected.detach()), rel=1e-6)
    found = torch.autograd.grad(loss, (states, vectors))
    exact = torch.autograd.grad(expected, (states, vectors))
    for one, other in zip(found, exact, strict=True):
        assert one.dtype == torch.bfloat16
        assert torch.allclose(one.float(), other.float(), atol=0.05, rtol=0.05)


@pytest.mark.parametrize("frozen", [False, True])
def test_weights_weigh_the_loss_of_each_state_and_its_gradients(frozen: bool) -> None:
    states, vectors, targets = drawn()
    weights = torch.rand(len(states)) * (torch.arange(len(states)) % 3 > 0)  # some are 0
    states.requires_grad_(not frozen)
    vectors.requires_grad_(not frozen)
    ours = summed_cross_entropy(states, vectors, targets, weights)
    each = F.cross_entropy(states @ vectors.T, targets, reduction="none")
    theirs = (each * weights.double()).sum()
    assert torch.allclose(ours, theirs, atol=1e-12)
    if not frozen:
        gradients = [torch.autograd.grad(loss, (states, vectors)) for loss in (ours, theirs)]
        for one, other in zip(*gradients, strict=True):
            assert torch.allclose(one, other, atol=1e-12)
