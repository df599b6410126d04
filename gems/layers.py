"""The layers that are tuned in subspaces, and the ranks of their subspaces."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import nn

from gems.errors import GemsError
from gems.knowledge import KnowledgeBasis

Rank = int | float
"""A count of directions (int), or a share of a layer's inputs (float, in (0, 1])."""

SHARED = "shared"


def find_linears(model: nn.Module) -> dict[str, nn.Linear]:
    """Return every `nn.Linear` with a trainable weight, by the name of its weight, without the output head.

    The output head is the layer that `get_output_embeddings()` returns, or a layer that shares its weight with an
    embedding.
    """
    get_head = getattr(model, "get_output_embeddings", None)
    head = get_head() if callable(get_head) else None
    taken = {id(m.weight) for m in model.modules() if isinstance(m, nn.Embedding)}
    found = {}
    for name, module in model.named_modules():
        if isinstance(module, nn.Linear) and module is not head and id(module.weight) not in taken:
            taken.add(id(module.weight))
            if module.weight.requires_grad:
                found[f"{name}.weight" if name else "weight"] = module
    return found


def ranks_of(
    name: str,
    linear: nn.Linear,
    tasks: Sequence[str],
    rank: Rank,
    task_rank: Rank | None,
    cap: float,
    knowledge: KnowledgeBasis | None,
    energy: float,
) -> tuple[dict[str, int], int]:
    """Rank of each family, and the most knowledge directions, for a layer [m, n].

    A family's rank is at most m, and shared, task and knowledge directions are at most n together. A rank
    given as a share is cut down to what there is room for beside the knowledge; beside a count, the
    knowledge is cut down, and a count that has no room at all raises `GemsError`.
    """
    if linear.weight.dtype not in (torch.float64, torch.float32, torch.bfloat16):
        raise GemsError(f"{name} is {linear.weight.dtype}; small updates need fp32 or bf16 weights")
    m, n = linear.out_features, linear.in_features
    known = 0 if knowledge is None else knowledge.size(name, energy, int(cap * n))
    per_task = 1 if tasks else 0
    shared = _count(rank, n, "rank")
    own = (max(1, shared // 2) if task_rank is None else _count(task_rank, n, "task_rank")) if tasks else 0
    room = n - (known if isinstance(rank, float) else 0)
    if isinstance(rank, float):
        shared = min(shared, m, room - per_task)
        own = min(own, m, room - shared)
    elif shared > m or own > m or shared + own > n:
        most = min(m, n * 2 // 3 if tasks and task_rank is None else n)
        raise GemsError(
            f"rank {rank} is too large for {name} ({m} × {n}): shared and task rank must each be at most {m} "
            f"and together at most {n}. Give at most {most}, or a share such as 0.25"
        )
    if shared < 1 or (tasks and own < 1):
        raise GemsError(
            f"{name} ({m} × {n}) has no room for a subspace; lower the cap or energy of the knowledge"
        )
    return {SHARED: shared, **dict.fromkeys(tasks, own)}, min(int(cap * n), n - shared - own)


def _count(rank: Rank, n: int, what: str) -> int:
    if isinstance(rank, bool) or not rank > 0 or (isinstance(rank, float) and rank > 1):
        raise GemsError(
            f"{what} {rank} must be a count above 0 (int) or a share of the inputs in (0, 1] (float)"
        )
    return max(1, round(rank * n)) if isinstance(rank, float) else rank
