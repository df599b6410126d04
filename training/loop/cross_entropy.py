"""Cross-entropy of states against all rows of a table, without the whole matrix of logits.

With p = softmax(H Vᵀ):

    L = −Σ_n log p_n[target_n]        ∂L/∂H = (p − onehot) V        ∂L/∂V = (p − onehot)ᵀ H

Loss and gradients are computed in one pass over blocks of states. A block of logits fits the processor's cache, and
memory does not grow with states × rows.
"""

from __future__ import annotations

from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

BLOCK = 2**20  # logits that exist at a time
LEAST = 32  # states of a block: fewer make slow products


def summed_cross_entropy(
    states: Tensor, vectors: Tensor, targets: Tensor, weights: Tensor | None = None
) -> Tensor:
    """Return Σ_n −w_n log softmax(states_n · vectorsᵀ)[targets_n], a scalar in nats.

    states: [n, D].
    vectors: [N, D].
    targets: rows of the vectors, int64 [n].
    weights: the w_n, float32 [n], without gradient; None for ones.

    Half-precision inputs are multiplied in their own precision. Softmax and sums over blocks are in float32.
    """
    if not torch.is_grad_enabled() or not (states.requires_grad or vectors.requires_grad):
        rows = _block(vectors)
        losses = [
            F.cross_entropy(_logits(hidden, vectors), wanted, reduction="none")
            for hidden, wanted in zip(torch.split(states, rows), torch.split(targets, rows), strict=True)
        ]
        each = torch.cat(losses)
        return each.sum() if weights is None else torch.dot(each, weights.to(each.dtype))
    loss: Tensor = _CrossEntropy.apply(states, vectors, targets, weights)  # type: ignore[no-untyped-call]
    return loss


class _CrossEntropy(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, states: Tensor, vectors: Tensor, targets: Tensor, weights: Tensor | None) -> Tensor:
        precise = torch.promote_types(states.dtype, torch.float32)
        d_states = torch.empty_like(states) if ctx.needs_input_grad[0] else None
        d_vectors = torch.zeros_like(vectors, dtype=precise) if ctx.needs_input_grad[1] else None
        rows = _block(vectors)
        loss = torch.zeros((), dtype=precise, device=states.device)
        for low in range(0, len(states), rows):
            hidden, wanted = states[low : low + rows], targets[low : low + rows, None]
            p = _logits(hidden, vectors)
            at_target, largest = p.gather(1, wanted), p.amax(1, keepdim=True)
            total = p.sub_(largest).exp_().sum(1, keepdim=True)
            each = total.log() + largest - at_target
            # p is exp(logit − largest) here: both gradients divide by the total on their small side
            error = p.scatter_add_(1, wanted, -total).to(states.dtype)
            if weights is not None:
                weight = weights[low : low + rows, None].to(each.dtype)
                each, total = each * weight, total / weight
            loss += each.sum()
            if d_states is not None:
                d_states[low : low + rows] = (error @ vectors) / total
            if d_vectors is not None:
                scaled = (hidden / total).to(states.dtype)
                if states.dtype == precise:
                    d_vectors.addmm_(error.T, scaled)
                else:
                    d_vectors += error.T @ scaled
        ctx.save_for_backward(d_states, None if d_vectors is None else d_vectors.to(vectors.dtype))
        return loss

    @staticmethod
    def backward(ctx: Any, *outer: Tensor) -> tuple[Tensor | None, Tensor | None, None, None]:
        d_states, d_vectors = (None if known is None else known * outer[0] for known in ctx.saved_tensors)
        return d_states, d_vectors, None, None


def _block(vectors: Tensor) -> int:
    """Return the number of states of a block."""
    return max(LEAST, BLOCK // max(1, len(vectors)))


def _logits(states: Tensor, vectors: Tensor) -> Tensor:
    logits = states @ vectors.T
    return logits if logits.dtype == torch.float64 else logits.float()
