"""The localised balance loss of LoRAMoE (Dou et al., arXiv 2312.09979): a half of the experts for each kind of sample.

Let Q_se be the mean weight that the router gives to expert e over the tokens of sample s. The first half of the experts
is for samples of knowledge, the second for those of the tasks:

    Z_se = Q_se · (1 − δ)   where the half of e is that of the kind of s,   Q_se · (1 + δ)   elsewhere
    loss = var(Z) / mean(Z)²

It is least where a sample gives (1 + δ) / (1 − δ) times as much to the experts of its own half, evenly within a half.
The authors' code sums over tokens; then long samples differ from short ones, whatever the router does. It marks the
halves by these factors alone, so that which of them is called the half of a kind is a matter of names.
"""

from __future__ import annotations

import torch
from torch import Tensor

from training.methods.method import SamplesOfPass


def balance_loss(mass: Tensor, knowledge: Tensor, delta: float) -> Tensor:
    """Return the loss, a scalar.

    mass: weights Q, [S, E]; E is even.
    knowledge: bool [S], whether each sample is knowledge.
    """
    experts = mass.shape[1]
    first = torch.arange(experts, device=mass.device) < experts // 2
    fits = knowledge.unsqueeze(1) == first
    weighted = mass * torch.where(fits, 1 - delta, 1 + delta)
    return weighted.var() / weighted.mean().square().clamp(min=1e-10)


def mass_of_samples(gate: Tensor, sample: Tensor, count: int) -> Tensor:
    """Return the mean weights over the tokens of each sample, [S, E].

    gate: weights of the experts, [N, E].
    sample: number of the sample of each token, int64 [N]; `count` on padding.
    count: S.
    """
    sums = gate.new_zeros(count + 1, gate.shape[1]).index_add_(0, sample, gate)[:count]
    tokens = torch.bincount(sample, minlength=count + 1)[:count]
    return sums / tokens.clamp(min=1).unsqueeze(1)


def numbered(samples: SamplesOfPass) -> tuple[Tensor, Tensor, Tensor | None]:
    """Return `knowledge`, bool [S], and the sample of each token of a pass, S on padding.

    The second is int64 [B T], and the third int64 [B P] for the tokens of an encoder, if there is one.
    """
    real = samples.kind >= 0
    if samples.position is None:
        begins = torch.zeros_like(real)
        begins[:, 0] = True
    else:
        begins = (samples.position == 0) & real
    number = begins.flatten().cumsum(0) - 1
    knowledge = samples.kind[begins] == 1
    count = len(knowledge)
    read = None
    if samples.attended is not None:
        rows = torch.arange(len(samples.attended)).unsqueeze(1)
        read = torch.where(samples.attended, rows, count).flatten()
    return knowledge, torch.where(real.flatten(), number, count), read
