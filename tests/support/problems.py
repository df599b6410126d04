"""Small real models and losses for the tests of the method."""

from __future__ import annotations

from collections.abc import Iterator, Mapping

import torch
from torch import Tensor, nn

from gems import GEMS, KnowledgeBasis, collect_knowledge, find_linears
from support.bundles import make_model

TASKS = ("search", "recommendation")


def network(dtype: torch.dtype = torch.float32, seed: int = 0) -> nn.Sequential:
    """A model with twelve inputs, five outputs, two linear layers and a norm."""
    torch.manual_seed(seed)
    return nn.Sequential(nn.Linear(12, 16, bias=False), nn.LayerNorm(16), nn.ReLU(), nn.Linear(16, 5)).to(
        dtype
    )


def regression(
    model: nn.Module, step: int, dtype: torch.dtype = torch.float32, tasks: tuple[str, ...] = TASKS
) -> dict[str, Tensor]:
    """Return the losses by task, from one forward pass on the inputs of the step; each task has its own targets."""
    rng = torch.Generator().manual_seed(1000 + step)
    inputs = torch.randn(20, 12, generator=rng, dtype=torch.float64).to(dtype)
    outputs = model(inputs)
    fixed = torch.Generator().manual_seed(7)
    losses = {}
    for task in TASKS:
        target = inputs @ torch.randn(12, 5, generator=fixed, dtype=torch.float64).to(dtype)
        if task in tasks:
            losses[task] = (outputs - target).square().mean()
    return losses


def train(
    model: nn.Module, optimizer: GEMS, steps: range, dtype: torch.dtype = torch.float32
) -> Iterator[Mapping[str, Tensor]]:
    for step in steps:
        losses = regression(model, step, dtype)
        optimizer.backward(losses)
        optimizer.step()
        yield losses


def language_model(
    dtype: torch.dtype = torch.float32,
) -> tuple[nn.Module, dict[str, nn.Linear], KnowledgeBasis]:
    """Return a two-layer Llama, its linear layers, and the knowledge basis of some text."""
    model = make_model(97, "llama").to(dtype)
    linears = find_linears(model)
    texts = torch.randint(0, 97, (6, 24), generator=torch.Generator().manual_seed(1))
    basis = collect_knowledge(model, [{"input_ids": texts[:3]}, {"input_ids": texts[3:]}], linears)
    return model, linears, basis


def token_losses(model: nn.Module, step: int) -> dict[str, Tensor]:
    """Return the next-token losses of two disjoint halves of a batch."""
    ids = torch.randint(0, 97, (4, 12), generator=torch.Generator().manual_seed(step))
    logits = model(input_ids=ids).logits[:, :-1]
    loss = nn.functional.cross_entropy(
        logits.flatten(0, 1).double(), ids[:, 1:].flatten(), reduction="none"
    ).view(4, -1)
    return {"search": loss[:2].mean(), "recommendation": loss[2:].mean()}
