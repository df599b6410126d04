"""One weight under GEMS: it projects its gradients, refreshes its bases and computes its updates."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from gems.conflict import conflict
from gems.knowledge import KnowledgeBasis
from gems.layers import SHARED
from gems.numerics import add_, magnitude
from gems.subspace import Subspaces, complement_basis, leading_directions


@dataclass(frozen=True)
class Rules:
    """Settings that all weights of an optimizer share; see `gems.optimizer.GEMS`."""

    tasks: tuple[str, ...]
    betas: tuple[float, float]
    eps: float
    deflate: bool
    transport: bool
    rank_scaling: bool
    growth_limit: float | None
    relative: bool
    knowledge: KnowledgeBasis | None
    energy: float
    seed: int


class ProjectedWeight:
    """A weight [m, n] whose gradient is held in its subspaces only, except while its bases are refreshed.

    full: full gradients [m, n] by task, only in a step that refreshes this weight.
    moved: ‖N‖² of each task family whose update was applied in the last step.
    """

    def __init__(
        self, name: str, index: int, parameter: nn.Parameter, ranks: dict[str, int], limit: int, rules: Rules
    ) -> None:
        self.name = name
        self.parameter = parameter
        self.subspaces = Subspaces(parameter, ranks)
        self.full: dict[str, Tensor] = {}
        self._index = index
        self._limit = limit  # largest number of knowledge directions that leaves room for all ranks
        self._rules = rules
        self.moved: dict[str, float] = {}
        self._length = 1.0  # factor of the last update in addition to the rate
        # N of the last update, from the first backward pass to the step
        self._directions: dict[str, Tensor] = {}
        self._last_size = 0.0

    def take(self, task: str, families: list[str], *, keep: bool, alignment: Mapping[str, Tensor]) -> None:
        """Project the parameter's full gradient, pass it to `receive`, and free it.

        keep: whether to keep the full gradient for a refresh in this step.
        """
        assert self.parameter.grad is not None
        gradient = self.parameter.grad.to(self.subspaces.basis.dtype)
        self.parameter.grad = None
        if keep:
            self.full[task] = self.full[task] + gradient if task in self.full else gradient
        if self.subspaces.ready:
            self.receive(gradient @ self.subspaces.basis, [] if keep else families, alignment)

    def receive(self, gradient: Tensor, families: list[str], alignment: Mapping[str, Tensor]) -> None:
        """Add a projected gradient to the sums of this step.

        gradient: g V [m, q], in the bases of all families.
        families: the families whose gradient it is added to.
        alignment: scalar by task; the scalar product ⟨g V, N⟩ with the task's last update is added in place.
        """
        spaces = self.subspaces
        gradient = gradient.to(spaces.basis.dtype)
        for family in families:
            columns = spaces.columns[family]
            spaces.projected[:, columns] += gradient[:, columns]
        for task, dot in alignment.items():
            if task in self.moved:
                if task not in self._directions:
                    direction = spaces.direction(task, self._rules.betas, self._rules.eps)
                    self._directions[task] = direction.mul_(self._length)
                dot += (gradient[:, spaces.columns[task]] * self._directions[task]).sum().to(dot)

    def refresh(self, step: int, families: Mapping[str, list[str]]) -> dict[str, float]:
        """Compute new bases from the full gradients of this step, project these gradients, and free them.

        step: number of the step; it seeds the random directions.
        families: the families that each task's gradient goes to.
        Returns figures of the new bases:
            energy: share of ‖Σ_t g_t‖² in the shared basis; energy.<task>: share of ‖g_t‖² in the task's basis.
            overlap: ‖V_aᵀ V_b‖² / r of the first two tasks.
            leak: ‖Uᵀ V‖ per direction.
            conflict: ρ of the full gradients of the first two tasks.
        """
        rules, spaces = self._rules, self.subspaces
        joint = torch.stack(list(self.full.values())).sum(0)
        generator = torch.Generator().manual_seed(hash((rules.seed, step, self._index)) & (2**63 - 1))
        known = []
        if rules.knowledge is not None:
            known = [rules.knowledge.directions(self.name, rules.energy, self._limit).to(joint)]
        outside = list(known)
        figures = {}
        for family, columns in spaces.columns.items():
            old = spaces.basis[:, columns] if spaces.ready else None
            source = joint if family == SHARED else self.full.get(family, joint if old is None else None)
            if source is None:
                # the task has no gradient in this step: keep its basis, outside the new shared one
                assert old is not None
                basis = complement_basis(old, outside, generator)
            else:
                iterations = 1 if spaces.ready else 3
                basis = leading_directions(
                    source, columns.stop - columns.start, outside=outside, start=old, iterations=iterations,
                    generator=generator,
                )  # fmt: skip
                size = source.square().sum().clamp(min=1e-38)
                name = "energy" if family == SHARED else f"energy.{family}"
                figures[name] = float((source @ basis).square().sum() / size)
            spaces.replace_basis(family, basis, rules.betas, transport=rules.transport and spaces.ready)
            if family == SHARED and rules.deflate:
                outside.append(basis)
        spaces.ready = True
        spaces.projected.zero_()
        for task, gradient in self.full.items():
            for family in families[task]:
                columns = spaces.columns[family]
                spaces.projected[:, columns] += gradient @ spaces.basis[:, columns]
        if known:
            figures["leak"] = float((known[0].T @ spaces.basis).norm()) / spaces.basis.shape[1] ** 0.5
        if len(rules.tasks) >= 2:
            first, second = (spaces.basis[:, spaces.columns[task]] for task in rules.tasks[:2])
            figures["overlap"] = float((first.T @ second).square().sum()) / first.shape[1]
            if rules.tasks[0] in self.full and rules.tasks[1] in self.full:
                figures["conflict"] = conflict(self.full[rules.tasks[0]], self.full[rules.tasks[1]])
        self.full = {}
        return figures

    def update(
        self, rate: float, decay: float, coefficients: Mapping[str, float], generator: torch.Generator
    ) -> None:
        """Apply W ← (1 − decay) W − rate · Σ_f c_f N_f V_fᵀ over the families in `coefficients`.

        rate: learning rate times scale.
        decay: learning rate times weight decay.
        coefficients: c_f by family.
        generator: randomness of the stochastic rounding of bf16 weights.
        With rank scaling, c_f is multiplied by √(n / r_f), because N Vᵀ is shorter than Adam's own update by about this
        factor. With a growth limit γ, ‖Σ c_f N_f‖ is at most γ times its value in the last step (Fira,
        arXiv 2410.01623). With relative steps, N_f is multiplied by the magnitude of W.
        """
        rules, spaces = self._rules, self.subspaces
        self.moved, self._directions = {}, {}
        self._length = magnitude(self.parameter) if rules.relative else 1.0
        if not spaces.ready or not coefficients:
            return
        blocks, bases = [], []
        for family, coefficient in coefficients.items():
            spaces.adam(family, rules.betas)
            basis = spaces.basis[:, spaces.columns[family]]
            scale = (basis.shape[0] / basis.shape[1]) ** 0.5 if rules.rank_scaling else 1.0
            block = spaces.direction(family, rules.betas, rules.eps).mul_(self._length)
            if family in rules.tasks:
                self.moved[family] = float(block.square().sum())
            blocks.append(block.mul_(scale * coefficient))
            bases.append(basis)
        direction, basis = torch.cat(blocks, dim=1), torch.cat(bases, dim=1)
        if rules.growth_limit is not None:
            size = float(direction.norm())
            if 0 < self._last_size * rules.growth_limit < size:
                direction *= self._last_size * rules.growth_limit / size
                size = self._last_size * rules.growth_limit
            self._last_size = size
        if decay:
            self.parameter.mul_(1 - decay)
        if self.parameter.dtype == direction.dtype:
            self.parameter.addmm_(direction, basis.T, alpha=-rate)
        else:
            add_(self.parameter, (direction @ basis.T).mul_(-rate), generator)

    def state_dict(self) -> dict[str, object]:
        """Return the subspaces and the figures of the last update."""
        last = {"moved": dict(self.moved), "length": self._length, "last_size": self._last_size}
        return self.subspaces.state_dict() | last

    def load_state_dict(self, state: dict[str, object]) -> None:
        """Restore a state. Raises `ValueError` if it is from another configuration."""
        self.subspaces.load_state_dict(state)
        self._directions = {}
        self.moved = dict(state["moved"])  # type: ignore[call-overload]
        self._length = float(state.get("length", 1.0))  # type: ignore[arg-type]
        self._last_size = float(state["last_size"])  # type: ignore[arg-type]
