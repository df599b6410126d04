"""Hidden states from which a trained model predicts items, with these items: what the dense head is fitted to."""

from __future__ import annotations

from collections.abc import Iterator, Sequence

import torch
from torch import Tensor
from transformers import PreTrainedModel

from index.sequence.encoder import Sample
from training.loop.batches import BatchSource
from training.loop.losses import part_states
from training.loop.parts import pad
from training.model.forward import to_device

MOST_TARGETS = 50_000
MOST_NUMBERS = 2**26  # of all states together
PASS_TOKENS = 8192  # of a forward pass, with padding


@torch.inference_mode()
def target_states(model: PreTrainedModel, batches: BatchSource) -> tuple[Tensor, Tensor]:
    """Return the states before the first code of each target of an epoch, float32 [n, d], and its row, int64 [n].

    Both are on the host. A long epoch is cut off after `MOST_TARGETS` targets: its order is random.
    """
    was_training = model.training
    model.eval()
    states, items = [], []
    found = 0
    try:
        for batch in batches.samples(0):
            for samples in _passes(batch):
                part = pad(samples)
                target = part.item[:, 1:].flatten()
                where = (target >= 0).nonzero().squeeze(1)
                hidden = part_states(model, part)[:, :-1].flatten(0, 1)
                states.append(hidden[to_device(where, hidden.device)].float().cpu())
                items.append(target[where])
                found += len(items[-1])
            if found >= min(MOST_TARGETS, MOST_NUMBERS // states[0].shape[1]):
                break
    finally:
        model.train(was_training)
    return torch.cat(states), torch.cat(items)


def _passes(batch: Sequence[Sample]) -> Iterator[list[Sample]]:
    """Divide a batch into forward passes of samples of similar length."""
    part: list[Sample] = []
    for sample in sorted(batch, key=len):
        if part and len(sample) * (len(part) + 1) > PASS_TOKENS:
            yield part
            part = []
        part.append(sample)
    yield part
