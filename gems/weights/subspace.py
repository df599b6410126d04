"""The subspaces of one weight: orthonormal bases on its input side, and Adam's moments in these bases.

W is [m, n] (out × in), g = ∂L/∂W. A subspace has an orthonormal basis V [n, r]. The gradient is kept as
R = g V [m, r], Adam runs on R, and the update of W is D = N Vᵀ with N = M̂ / (√V̂ + ε). For every N, D x = 0 for every
input x that is orthogonal to V (docs/gems.md; GaLore, arXiv 2403.03507). With a soft null space the basis that is kept
is S V, see `gems.weights.shrinkage`.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from gems.weights.shards import AllRows


def complement_basis(columns: Tensor, outside: Sequence[Tensor], generator: torch.Generator) -> Tensor:
    """Return an orthonormal basis [n, q] of `columns` [n, q] without the spans of `outside` ([n, k] each).

    Only the direction of a column matters, not its length. Columns that vanish are replaced by random directions, so
    that the basis is always complete. The removal is repeated until there is nothing left to remove: otherwise rounding
    errors would grow. Needs q + Σ k ≤ n.
    """
    columns = columns / columns.norm(dim=0).clamp(min=torch.finfo(columns.dtype).tiny)
    for _ in range(6):
        for other in outside:
            columns = columns - other @ (other.T @ columns)
        basis, triangle = torch.linalg.qr(columns)
        size = triangle.diagonal().abs()  # length of each column after the removal
        if bool(((size - 1).abs() < 1e-3).all()):
            break
        weak = size <= 1e-5
        fresh = torch.randn(columns.shape, generator=generator, dtype=columns.dtype).to(columns.device)
        columns = torch.where(weak, fresh, basis)
    found: Tensor = basis
    return found


def leading_directions(
    gradient: Tensor,
    rank: int,
    *,
    outside: Sequence[Tensor] = (),
    start: Tensor | None = None,
    iterations: int = 2,
    oversampling: int = 8,
    generator: torch.Generator,
    shard: AllRows | None = None,
) -> Tensor:
    """Return the top `rank` right singular vectors [n, rank] of g P, where P removes the spans of `outside`.

    Runs subspace iteration on P gᵀg P and a Rayleigh-Ritz rotation at the end (Halko, Martinsson & Tropp,
    arXiv 0909.4061). The result is exact if `rank` + `oversampling` ≥ n − Σ k.
    gradient: g, float [m, n]; the computation runs in its dtype. Of a sharded weight, its rows that are here.
    outside: orthonormal bases [n, k].
    start: first guess [n, ·]; random if not given.
    shard: sums over the rows of all processes; all rows are here if not given. Only [n, ·] and smaller is sent.
    """
    shard = shard or AllRows()
    n = gradient.shape[1]
    width = min(rank + oversampling, n - sum(other.shape[1] for other in outside))
    random = torch.randn(n, width, generator=generator, dtype=gradient.dtype).to(gradient.device)
    columns = random if start is None else torch.cat([start, random[:, start.shape[1] :]], dim=1)[:, :width]
    basis = complement_basis(columns, outside, generator)
    for _ in range(iterations if width < n else 0):
        image = gradient @ basis
        # g may be tiny: keep its image in the range of the dtype
        image = image / shard.norm(image).clamp(min=torch.finfo(image.dtype).tiny)
        basis = complement_basis(shard.sum(gradient.T @ image), outside, generator)
    # QR keeps weak directions apart, a Gram matrix would not
    triangle = shard.triangle(gradient @ basis)
    rotation = torch.linalg.svd(triangle).Vh.T
    directions: Tensor = basis @ rotation[:, :rank]
    return directions


def transport_moments(
    first: Tensor, second: Tensor, overlap: Tensor, count: int, betas: tuple[float, float]
) -> tuple[Tensor, Tensor]:
    """Return Adam's moments [m, r] in a new basis (LDAdam, arXiv 2410.16103).

    overlap: C = V_oldᵀ V_new [r, r].
    count: number of steps in the moments.

        M' = M C
        V' = (1 − β₂ᵗ) · (|(V̂ − M̂²)(C∘C) + (M̂ C)²| + mean_row(V̂) (1 − Σ_i C_i²))

    M̂ and V̂ are bias-corrected. The variance moves with squared coefficients, as if the coordinates were uncorrelated.
    The last term is not in LDAdam. A new direction has a part outside the old basis, and this part has no history.
    Without the term it would look like a part without gradient, and its steps would be several times too long.
    """
    if count == 0:
        return torch.zeros_like(first), torch.zeros_like(second)
    mean = first / (1 - betas[0] ** count)
    square = second / (1 - betas[1] ** count)
    held = overlap.square()
    unseen = (1 - held.sum(0)).clamp(min=0)
    moved = (square - mean.square()) @ held + (mean @ overlap).square()
    moved = moved.abs() + square.mean(1, keepdim=True) * unseen
    return first @ overlap, (1 - betas[1] ** count) * moved


class Subspaces:
    """The families of subspaces of one weight, in adjacent columns: the shared one first, then one for each task.

    basis [n, q], first and second moment [m, q], projected gradient [m, q]: fp32, or fp64 for an fp64 weight.
    columns: slice of the q columns for each family.
    counts: number of Adam steps of each family.
    ready: whether the bases are set.
    """

    def __init__(self, shape: tuple[int, int], weight: Tensor, ranks: dict[str, int]) -> None:
        """Make empty subspaces. shape: m and n; weight: a tensor of the weight's dtype and device."""
        m, n = shape
        dtype = torch.float64 if weight.dtype == torch.float64 else torch.float32
        starts = [sum(list(ranks.values())[:k]) for k in range(len(ranks) + 1)]
        self.columns = {family: slice(starts[k], starts[k + 1]) for k, family in enumerate(ranks)}
        q = starts[-1]
        self.basis = torch.zeros(n, q, dtype=dtype, device=weight.device)
        self.first = torch.zeros(m, q, dtype=dtype, device=weight.device)
        self.second = torch.zeros_like(self.first)
        self.projected = torch.zeros_like(self.first)
        self.counts = dict.fromkeys(ranks, 0)
        self.ready = False  # becomes true at the first refresh

    def replace_basis(
        self, family: str, basis: Tensor, overlap: Tensor | None, betas: tuple[float, float]
    ) -> None:
        """Set the basis [n, r] of a family.

        overlap: V_oldᵀ V_new [r, r], with which the moments move to the new basis; if None they stay (stale).
        """
        columns = self.columns[family]
        if overlap is not None:
            first, second = transport_moments(
                self.first[:, columns], self.second[:, columns], overlap, self.counts[family], betas
            )
            self.first[:, columns] = first
            self.second[:, columns] = second
        self.basis[:, columns] = basis

    def adam(self, family: str, betas: tuple[float, float]) -> None:
        """Update the moments of a family with its projected gradient."""
        columns = self.columns[family]
        gradient = self.projected[:, columns]
        self.first[:, columns].lerp_(gradient, 1 - betas[0])
        self.second[:, columns].mul_(betas[1]).addcmul_(gradient, gradient, value=1 - betas[1])
        self.counts[family] += 1

    def direction(self, family: str, betas: tuple[float, float], eps: float) -> Tensor:
        """Return N = M̂ / (√V̂ + ε) [m, r] of a family, as a new tensor."""
        columns, count = self.columns[family], self.counts[family]
        root = (self.second[:, columns] / (1 - betas[1] ** count)).sqrt_().add_(eps)
        return (self.first[:, columns] / (1 - betas[0] ** count)).div_(root)

    def state_dict(self) -> dict[str, object]:
        """Return the bases, moments and step counts."""
        return {
            "basis": self.basis,
            "first": self.first,
            "second": self.second,
            "counts": dict(self.counts),
            "ready": self.ready,
        }

    def check_state(self, state: dict[str, object]) -> None:
        """Raise `ValueError` if the shapes or families of a state are from another configuration."""
        if set(state["counts"]) != set(self.counts):  # type: ignore[call-overload]
            raise ValueError(f"families {sorted(state['counts'])}, not {sorted(self.counts)}")  # type: ignore[call-overload]
        for name in ("basis", "first", "second"):
            stored, mine = state[name], getattr(self, name)
            assert isinstance(stored, Tensor)
            if stored.shape != mine.shape:
                raise ValueError(f"{name} {tuple(stored.shape)}, not {tuple(mine.shape)}")
            if stored.dtype != mine.dtype:
                raise ValueError(f"{name} in {stored.dtype}, not in {mine.dtype}")

    def load_state_dict(self, state: dict[str, object]) -> None:
        """Restore a state that `check_state` accepts."""
        for name in ("basis", "first", "second"):
            getattr(self, name).copy_(state[name])
        self.counts = dict(state["counts"])  # type: ignore[call-overload]
        self.ready = bool(state["ready"])
