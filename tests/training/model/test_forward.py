"""Blocks that are computed again in backward passes change nothing but memory."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from support.batches import VOCABULARY, source
from support.bundles import make_model
from torch import Tensor
from transformers import PreTrainedModel

from training.config import TrainConfig
from training.loop.losses import item_losses
from training.methods.registry import make_method
from training.model.forward import checkpoint_blocks

VARIANTS: list[tuple[str, dict[str, Any]]] = [
    ("full", {}), ("lora", {}), ("pcgrad", {}), ("gems", {}), ("gems", {"gems.joint": False}),
    ("gems", {"gems.share_bases": True}),
]  # fmt: skip


def trained(model: PreTrainedModel, method: str, settings: dict[str, Any]) -> tuple[list[float], int]:
    """Make three steps. Return their losses, and the bytes that the first pass kept for its backward pass."""
    torch.manual_seed(5)
    config = TrainConfig.load(None, {"method": method, "gems.refresh_every": 2, "gems.stagger": 1} | settings)
    optimiser = make_method(model, config, VOCABULARY.first_added)
    model.train()
    found, held = [], {}

    def keep(tensor: Tensor) -> Tensor:
        held[tensor.untyped_storage().data_ptr()] = tensor.untyped_storage().nbytes()
        return tensor

    for step, batch in zip(range(3), source(seed=4).epoch(0), strict=False):
        torch.manual_seed(step)  # of dropout
        for part in batch.parts:
            with torch.autograd.graph.saved_tensors_hooks(keep, lambda kept: kept):
                losses = item_losses(model, VOCABULARY, part, "level", optimiser.rows)
            found += [float(loss.detach()) for loss in losses.values()]
            optimiser.backward(losses, dict.fromkeys(losses, 0.5))
        optimiser.step(1e-2)
    return found, sum(held.values())


@pytest.mark.parametrize("arch", ["llama", "gpt-neox"])
@pytest.mark.parametrize(("method", "settings"), VARIANTS)
def test_checkpointed_blocks_learn_the_same_and_hold_less(
    method: str, settings: dict[str, Any], arch: str
) -> None:
    plain, checkpointed = (make_model(VOCABULARY.size, arch).double() for _ in range(2))
    checkpoint_blocks(checkpointed)
    expected, bytes_held = trained(plain, method, settings)
    found, bytes_less = trained(checkpointed, method, settings)
    assert found == pytest.approx(expected, rel=1e-9)
    for name, weight in checkpointed.state_dict().items():
        assert torch.allclose(weight, plain.state_dict()[name], atol=1e-8), name
    assert bytes_less < 0.7 * bytes_held
