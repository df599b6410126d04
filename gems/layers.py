"""The layers that are tuned in subspaces, and the ranks of their subspaces."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import nn

from gems.errors import GemsError
from gems.knowledge import KnowledgeBasis

SHARED = "shared"


@dataclass(frozen=True)
class Ranks:
    """Sizes of the subspaces: the shared one as a count or as a share, and in the same way that of each task.

    rank: directions of the shared basis, at least 1.
    rank_share: the same as a share of a layer's inputs, in (0, 1]. Exactly one of the two is given.
    task_rank, task_rank_share: the same for each task's basis; at most one is given, neither means half of `shared`.
    Raises `GemsError` for both or neither of a pair, and for values out of range.
    """

    rank: int | None = None
    rank_share: float | None = None
    task_rank: int | None = None
    task_rank_share: float | None = None

    def __post_init__(self) -> None:
        _check_pair("rank", self.rank, self.rank_share)
        _check_pair("task_rank", self.task_rank, self.task_rank_share)
        if self.rank is None and self.rank_share is None:
            raise GemsError(
                "give rank (a count of directions) or rank_share (a share of the inputs in (0, 1])"
            )

    def shared(self, n: int) -> int:
        """Return the directions of the shared basis of a layer with n inputs."""
        return _count(n, self.rank, self.rank_share) or 1

    def task(self, n: int) -> int:
        """Return the directions of each task's basis of a layer with n inputs."""
        return _count(n, self.task_rank, self.task_rank_share) or max(1, self.shared(n) // 2)


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
    ranks: Ranks,
    cap: float,
    knowledge: KnowledgeBasis | None,
    energy: float,
) -> tuple[dict[str, int], int]:
    """Return the rank of each family, and the largest number of knowledge directions, for a layer [m, n].

    A family's rank is at most m; shared, task and knowledge directions are at most n together. With
    `rank_share` the ranks are cut down to the room that the knowledge leaves. With `rank` the knowledge is
    cut down instead.
    Raises `GemsError` if a count does not fit the layer, or if no room is left.
    """
    if linear.weight.dtype not in (torch.float64, torch.float32, torch.bfloat16):
        raise GemsError(f"{name} is {linear.weight.dtype}; small updates need fp32 or bf16 weights")
    m, n = linear.out_features, linear.in_features
    known = 0 if knowledge is None else knowledge.size(name, energy, int(cap * n))
    per_task = 1 if tasks else 0
    shared = ranks.shared(n)
    own = ranks.task(n) if tasks else 0
    if ranks.rank is None:
        room = n - known
        shared = min(shared, m, room - per_task)
        own = min(own, m, room - shared)
    elif shared > m or own > m or shared + own > n:
        halved = tasks and ranks.task_rank is None and ranks.task_rank_share is None
        most = min(m, n * 2 // 3 if halved else n)
        raise GemsError(
            f"rank {ranks.rank} is too large for {name} ({m} × {n}): shared and task rank must each be at most {m} "
            f"and together at most {n}. Give at most {most}, or a share such as rank_share 0.25"
        )
    if shared < 1 or (tasks and own < 1):
        raise GemsError(
            f"{name} ({m} × {n}) has no room for a subspace; lower the cap or energy of the knowledge"
        )
    return {SHARED: shared, **dict.fromkeys(tasks, own)}, min(int(cap * n), n - shared - own)


def _check_pair(name: str, count: int | None, share: float | None) -> None:
    """Raise `GemsError` unless the pair holds at most one value, of its own type and in its range."""
    if count is not None and share is not None:
        raise GemsError(f"give {name} or {name}_share, not both ({name} {count}, {name}_share {share})")
    if count is not None and (isinstance(count, bool) or not isinstance(count, int)):
        raise GemsError(
            f"{name} {count} must be a count of directions (int); write {name}_share={count} for a share of the inputs"
        )
    if count is not None and count < 1:
        raise GemsError(f"{name} {count} must be a count above 0")
    if share is not None and (isinstance(share, bool) or not 0 < share <= 1):
        raise GemsError(
            f"{name}_share {share} must be a share of the inputs in (0, 1]; write {name} for a count of directions"
        )


def _count(n: int, count: int | None, share: float | None) -> int | None:
    return max(1, round(share * n)) if share is not None else count
