"""The subspaces of one weight: orthonormal bases on its input side, and Adam's moments inside them.

W is [m, n] (out × in), g = ∂L/∂W. A subspace has an orthonormal basis V [n, r]; the gradient is kept as
R = g V [m, r], Adam runs on R, and the update of W is D = N Vᵀ with N = M̂ / (√V̂ + ε). Whatever Adam does
elementwise, D x = 0 for every input x that is orthogonal to V (docs/gems.md; GaLore, arXiv 2403.03507).
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor


def complement_basis(columns: Tensor, outside: Sequence[Tensor], generator: torch.Generator) -> Tensor:
    """Orthonormal basis [n, q] of `columns` [n, q] after removing the spans of `outside` ([n, k] each).

    Columns count by direction, not by length. Those that vanish are replaced by random directions, so that
    the basis is always complete. Needs q + Σ k ≤ n. Repeated until nothing is left to remove, so that
    rounding errors do not grow.
    """
    columns = columns / columns.norm(dim=0).clamp(min=torch.finfo(columns.dtype).tiny)
    for _ in range(6):
        for other in outside:
            columns = columns - other @ (other.T @ columns)
        basis, triangle = torch.linalg.qr(columns)
        size = triangle.diagonal().abs()  # what was left of each column
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
) -> Tensor:
    """Top-`rank` right singular vectors [n, rank] of g P, where P removes the spans of `outside`.

    Subspace iteration on P gᵀg P, warm from `start` [n, ·] if given, and a Rayleigh-Ritz rotation at the
    end (Halko, Martinsson & Tropp, arXiv 0909.4061). With `rank` + oversampling ≥ n − Σ k it is exact.
    gradient: float [m, n], of the dtype that is to be computed in.
    """
    n = gradient.shape[1]
    width = min(rank + oversampling, n - sum(other.shape[1] for other in outside))
    random = torch.randn(n, width, generator=generator, dtype=gradient.dtype).to(gradient.device)
    columns = random if start is None else torch.cat([start, random[:, start.shape[1] :]], dim=1)[:, :width]
    basis = complement_basis(columns, outside, generator)
    for _ in range(iterations if width < n else 0):
        image = gradient @ basis
        image = image / image.norm().clamp(
            min=torch.finfo(image.dtype).tiny
        )  # g may be tiny; keep it in range
        basis = complement_basis(gradient.T @ image, outside, generator)
    triangle = torch.linalg.qr(
        gradient @ basis, mode="r"
    ).R  # keeps weak directions apart, as a Gram matrix would not
    rotation = torch.linalg.svd(triangle).Vh.T
    directions: Tensor = basis @ rotation[:, :rank]
    return directions


def transport_moments(
    first: Tensor, second: Tensor, overlap: Tensor, count: int, betas: tuple[float, float]
) -> tuple[Tensor, Tensor]:
    """Carry Adam's moments [m, r] over to a new basis (LDAdam, arXiv 2410.16103).

    overlap: C = V_oldᵀ V_new [r, r]; count: steps that the moments have seen.

        M' = M C
        V' = (1 − β₂ᵗ) · (|(V̂ − M̂²)(C∘C) + (M̂ C)²| + mean_row(V̂) (1 − Σ_i C_i²))

    with M̂ and V̂ bias-corrected. The variance moves with squared coefficients, as if the coordinates were
    uncorrelated. The last term is ours: the part of a new direction that the old basis did not hold has
    no history, and would pass for one without gradient, with steps several times too long.
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
    """The families of subspaces of one weight, side by side: shared first, then one for each task.

    basis [n, q], first and second moment [m, q], projected gradient [m, q]; `columns[family]` is the slice
    of a family, `counts[family]` its Adam steps. All fp32 (fp64 for fp64 weights).
    """

    def __init__(self, weight: Tensor, ranks: dict[str, int]) -> None:
        m, n = weight.shape
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
        self, family: str, basis: Tensor, betas: tuple[float, float], *, transport: bool
    ) -> None:
        """Set the basis [n, r] of a family; its moments are carried over, or kept as they are (stale)."""
        columns = self.columns[family]
        if transport:
            overlap = self.basis[:, columns].T @ basis
            first, second = transport_moments(
                self.first[:, columns], self.second[:, columns], overlap, self.counts[family], betas
            )
            self.first[:, columns] = first
            self.second[:, columns] = second
        self.basis[:, columns] = basis

    def adam(self, family: str, betas: tuple[float, float]) -> None:
        """Take the projected gradient of a family into its moments."""
        columns = self.columns[family]
        gradient = self.projected[:, columns]
        self.first[:, columns].lerp_(gradient, 1 - betas[0])
        self.second[:, columns].mul_(betas[1]).addcmul_(gradient, gradient, value=1 - betas[1])
        self.counts[family] += 1

    def direction(self, family: str, betas: tuple[float, float], eps: float) -> Tensor:
        """N = M̂ / (√V̂ + ε) [m, r] of a family; a copy."""
        columns, count = self.columns[family], self.counts[family]
        root = (self.second[:, columns] / (1 - betas[1] ** count)).sqrt_().add_(eps)
        return (self.first[:, columns] / (1 - betas[0] ** count)).div_(root)

    def state_dict(self) -> dict[str, object]:
        return {
            "basis": self.basis,
            "first": self.first,
            "second": self.second,
            "counts": dict(self.counts),
            "ready": self.ready,
        }

    def load_state_dict(self, state: dict[str, object]) -> None:
        """Raises `ValueError` for shapes or families of another configuration."""
        if set(state["counts"]) != set(self.counts):  # type: ignore[call-overload]
            raise ValueError(f"families {sorted(state['counts'])}, not {sorted(self.counts)}")  # type: ignore[call-overload]
        for name in ("basis", "first", "second"):
            stored, mine = state[name], getattr(self, name)
            assert isinstance(stored, Tensor)
            if stored.shape != mine.shape:
                raise ValueError(f"{name} {tuple(stored.shape)}, not {tuple(mine.shape)}")
            mine.copy_(stored)
        self.counts = dict(state["counts"])  # type: ignore[call-overload]
        self.ready = bool(state["ready"])
