"""New bases of a weight, from its full gradients."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from gems.model.conflict import conflict_of, products
from gems.weights.ranks import SHARED
from gems.weights.rules import Rules
from gems.weights.shards import AllRows
from gems.weights.shrinkage import Shrinkage
from gems.weights.subspace import Subspaces, complement_basis, leading_directions


@dataclass(frozen=True)
class Limits:
    """Demands of the knowledge on new bases: directions U [n, k] of a hard null space, S of a soft one, or neither."""

    directions: Tensor | None = None
    shrinkage: Shrinkage | None = None

    @classmethod
    def of(cls, name: str, known: int, rules: Rules, like: Tensor) -> Limits:
        """Read them for a weight, in the dtype and on the device of `like`. known: number of directions, if hard."""
        if rules.knowledge is None:
            return cls()
        if rules.softness is None:
            return cls(rules.knowledge.directions(name, rules.energy, known).to(like))
        directions, eigenvalues = rules.knowledge.spectrum(name)
        mean = max(float(eigenvalues.mean()), 1e-30)  # inputs may be zero on all of the general text
        mu = rules.softness * mean
        return cls(shrinkage=Shrinkage(directions.to(like), eigenvalues.to(like.device), mu))


def renew(
    spaces: Subspaces,
    full: Mapping[str, Tensor],
    families: Mapping[str, Sequence[str]],
    limits: Limits,
    rules: Rules,
    betas: tuple[float, float],
    generator: torch.Generator,
    shard: AllRows,
) -> dict[str, float]:
    """Replace the bases of a weight, move its moments along, and hold the projections of the full gradients.

    full: gradients [a, b] by task: their rows that are here.
    families: the families that each task's gradient goes to.
    shard: sums over the rows of all processes, which find the same bases.
    Returns figures of the new bases:
        energy: share of ‖Σ_t g_t‖² in the shared basis; energy.<task>: share of ‖g_t‖² in the task's basis
            (with a soft null space, of g S).
        overlap: ‖V_aᵀ V_b‖² / r of the first two tasks (with a soft null space, of S V).
        leak: ‖Uᵀ V‖ per direction.
        conflict: ρ of the full gradients of the first two tasks.
    """
    joint = torch.stack(list(full.values())).sum(0)
    if not spaces.ready and not shard.any(joint):  # an expert without tokens has its first refresh later
        return {}
    shrinkage = limits.shrinkage
    outside = [] if limits.directions is None else [limits.directions]
    figures = {}
    for family, columns in spaces.columns.items():
        old = spaces.basis[:, columns] if spaces.ready else None
        source = joint if family == SHARED else full.get(family, joint if old is None else None)
        if old is not None and source is not None and not shard.any(source):
            source = None  # zeros have no directions
        if shrinkage is not None:
            old = None if old is None else shrinkage.undo(old.T).T
            source = None if source is None else shrinkage.apply(source)
        if source is None:
            # there is no gradient in this step: keep the basis, outside the new shared one
            assert old is not None
            basis = complement_basis(old, outside, generator)
        else:
            iterations = 1 if spaces.ready else 3
            basis = leading_directions(
                source, columns.stop - columns.start, outside=outside, start=old, iterations=iterations,
                generator=generator, shard=shard,
            )  # fmt: skip
            held, size = shard.sum(torch.stack([(source @ basis).square().sum(), source.square().sum()]))
            name = "energy" if family == SHARED else f"energy.{family}"
            figures[name] = float(held / size.clamp(min=1e-38))
        overlap = old.T @ basis if old is not None and rules.transport else None
        applied = basis if shrinkage is None else shrinkage.apply(basis.T).T
        spaces.replace_basis(family, applied, overlap, betas)
        if family == SHARED and rules.deflate:
            outside = [*outside, basis]
    spaces.ready = True
    spaces.projected.zero_()
    for task, gradient in full.items():
        for family in families[task]:
            columns = spaces.columns[family]
            spaces.projected[:, columns] += gradient @ spaces.basis[:, columns]
    if limits.directions is not None:
        figures["leak"] = float((limits.directions.T @ spaces.basis).norm()) / spaces.basis.shape[1] ** 0.5
    return figures | _between_tasks(spaces, full, rules.tasks, shard)


def _between_tasks(
    spaces: Subspaces, full: Mapping[str, Tensor], tasks: Sequence[str], shard: AllRows
) -> dict[str, float]:
    """Return the overlap of the bases of the first two tasks, and the conflict of their gradients."""
    if len(tasks) < 2:
        return {}
    first, second = (spaces.basis[:, spaces.columns[task]] for task in tasks[:2])
    figures = {"overlap": float((first.T @ second).square().sum()) / first.shape[1]}
    if tasks[0] in full and tasks[1] in full:
        figures["conflict"] = conflict_of(shard.sum(products(full[tasks[0]], full[tasks[1]])))
    return figures
