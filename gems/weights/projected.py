"""A weight under GEMS, or several with one basis: it projects gradients, refreshes bases and computes updates."""

from __future__ import annotations

import warnings
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import replace

import torch
from torch import Tensor

from gems.model.errors import GemsError
from gems.model.layers import Matrix, stacks
from gems.weights.part import Part, Rates
from gems.weights.ranks import SHARED, Ranks
from gems.weights.renewal import Limits, renew
from gems.weights.rules import Rules
from gems.weights.subspace import Subspaces


class ProjectedWeight:
    """A weight W [m, n] whose gradient is held in its subspaces only, except while its bases are refreshed.

    Its bases hold input directions: W is used as it is, and R = g V. With `output_bases`, a weight with more outputs
    than inputs has bases of output directions, which take less state: then all is the same for Wᵀ, and R = gᵀ V.
    Weights of layers that read the same input can have one basis: they are stacked by rows, and treated as one.

    name: name of the weight, or of the first of several.
    parts: the weight, or several; the rows of each are in `Part.rows`.
    shape: a rows of all parts that this process holds, b columns, which the bases belong to.
    shard: what sums over the rows of all processes.
    full: full gradients [a, b] by task, only in a step that refreshes this weight.
    moved: ‖N‖² of each task family whose update was applied in the last step, scalars.
    """

    def __init__(
        self,
        matrices: Sequence[Matrix],
        index: int,
        ranks: dict[str, int],
        known: int,
        rules: Rules,
    ) -> None:
        m, n = matrices[0].shape
        self.on_outputs = rules.output_bases and m > n
        self.name = matrices[0].name
        self.parts: list[Part] = []
        rows = 0
        for matrix in matrices:
            self.parts.append(Part(matrix, rows, on_outputs=self.on_outputs))
            rows = self.parts[-1].rows.stop
        self.shape = rows, m if self.on_outputs else n
        self.shard = self.parts[0].shard
        self.subspaces = Subspaces(self.shape, matrices[0].parameter, ranks)
        self.full: dict[str, Tensor] = {}
        self.moved: dict[str, Tensor] = {}
        self._index = index
        self._known = known
        self._rules = rules
        self._last: Rates | None = None
        self._factors: dict[str, float | Tensor] = {}  # N of the last update relative to Adam's, by task
        # N of the last update, from the first backward pass to the step
        self._directions: dict[str, Tensor] = {}
        self._last_size: Tensor | None = None

    def take(
        self,
        part: Part,
        gradient: Tensor,
        task: str,
        families: Sequence[str],
        *,
        keep: bool,
        alignment: Mapping[str, Tensor],
    ) -> None:
        """Project the full gradient of a part, in the form of its parameter, and pass it to `receive`.

        keep: whether to keep the full gradient for a refresh in this step.
        """
        part.note_gradient()
        gradient = part.seen(gradient.detach()).to(self.subspaces.basis.dtype)
        if keep:
            self._keep(part, gradient, task)
        if self.subspaces.ready:
            self._add(part, gradient @ self.subspaces.basis, [] if keep else families, alignment)

    def _keep(self, part: Part, gradient: Tensor, task: str) -> None:
        if len(self.parts) == 1:  # without a copy of the first one
            self.full[task] = self.full[task] + gradient if task in self.full else gradient
            return
        if task not in self.full:
            self.full[task] = gradient.new_zeros(self.shape)
        self.full[task][part.rows] += gradient

    @property
    def reached(self) -> bool:
        """Whether a gradient of any part has come since the last step."""
        return any(part.reached for part in self.parts)

    def receive(
        self, part: Part, gradient: Tensor, families: Sequence[str], alignment: Mapping[str, Tensor]
    ) -> None:
        """Add the projected gradient of a part to the sums of this step.

        gradient: g V, [rows of the part, q], in the bases of all families. Of a sharded part it has all rows, and is
            this process's summand; `scatter` sums them.
        families: the families whose gradient it is added to.
        alignment: scalar by task; the scalar product ⟨g V, N⟩ with the task's last update is added in place.
        """
        part.note_gradient()
        gradient = gradient.detach().to(self.subspaces.basis.dtype)
        if not part.shard.sharded:
            self._add(part, gradient, families, alignment)
            return
        key = tuple(families) if alignment else ()  # what is compared with every family is kept apart
        if key not in part.summands:
            part.summands[key] = torch.zeros_like(gradient)
        for family in self.subspaces.columns if alignment else families:
            columns = self.subspaces.columns[family]
            part.summands[key][:, columns] += gradient[:, columns]

    def scatter(self, alignment: Mapping[str, Tensor]) -> None:
        """Sum the projected gradients of a sharded weight over the processes; each keeps its rows of the sums.

        alignment: see `receive`.
        """
        for part in self.parts:
            for families, summand in part.summands.items():
                self._add(part, part.shard.scatter(summand), families or self.subspaces.columns, alignment)
            part.summands = {}

    def _add(
        self, part: Part, gradient: Tensor, families: Iterable[str], alignment: Mapping[str, Tensor]
    ) -> None:
        """Add the projected gradient of the rows that are here; see `receive`."""
        spaces = self.subspaces
        for family in families:
            columns = spaces.columns[family]
            spaces.projected[part.rows, columns] += gradient[:, columns]
        for task, dot in alignment.items():
            if task in self.moved:
                if task not in self._directions:
                    assert self._last is not None
                    direction = spaces.direction(task, self._last.betas, self._last.eps)
                    self._directions[task] = direction.mul_(self._factors[task])
                last = self._directions[task][part.rows]
                dot += (gradient[:, spaces.columns[task]] * last).sum().to(dot)

    def refresh(
        self, step: int, families: Mapping[str, Sequence[str]], betas: tuple[float, float]
    ) -> dict[str, float]:
        """Compute new bases from the full gradients of this step, project these gradients, and free them.

        step: number of the step; it seeds the random directions.
        families: the families that each task's gradient goes to.
        Returns figures of the new bases; see `renew`.
        """
        full, self.full = self.full, {}
        generator = torch.Generator().manual_seed(hash((self._rules.seed, step, self._index)) & (2**63 - 1))
        limits = Limits.of(self.name, self._known, self._rules, self.subspaces.basis)
        return renew(self.subspaces, full, families, limits, self._rules, betas, generator, self.shard)

    def update(self, rates: Rates, coefficients: Mapping[str, float]) -> None:
        """Apply W ← (1 − decay) W − rate · Σ_f c_f N_f V_fᵀ over the families in `coefficients`.

        coefficients: c_f by family.
        A weight that no gradient has reached since the last step stays as it is, with its moments, also next to others
        with the same basis.
        With rank scaling, N_f is multiplied by √(b / r_f), because N Vᵀ is shorter than Adam's own update by about this
        factor. With a growth limit γ, ‖Σ c_f N_f‖ is at most γ times its value in the last step (Fira,
        arXiv 2410.01623). With relative steps, N_f is multiplied by the magnitude of W.
        """
        rules, spaces = self._rules, self.subspaces
        self.moved, self._directions = {}, {}
        if not spaces.ready or not self.reached:
            return
        length = self._length() if rules.relative else 1.0
        resting = [part for part in self.parts if not part.reached]
        moments = [(spaces.first[part.rows].clone(), spaces.second[part.rows].clone()) for part in resting]
        blocks, bases = [], []
        self._last, self._factors = rates, {}
        for family, coefficient in coefficients.items():
            spaces.adam(family, rates.betas)
            basis = spaces.basis[:, spaces.columns[family]]
            factor = length * ((basis.shape[0] / basis.shape[1]) ** 0.5 if rules.rank_scaling else 1.0)
            block = spaces.direction(family, rates.betas, rates.eps).mul_(factor)
            for part in resting:
                block[part.rows] = 0
            if family in rules.tasks:
                self._factors[family] = factor
                self.moved[family] = block.square().sum()
            blocks.append(block.mul_(coefficient))
            bases.append(basis)
        direction, basis = torch.cat(blocks, dim=1), torch.cat(bases, dim=1)
        if rules.growth_limit is not None:
            self._limit_growth(direction, rules.growth_limit)
        for part in self.parts:
            if part.reached:
                part.update(direction, basis, rates)
        for part, (first, second) in zip(resting, moments, strict=True):
            spaces.first[part.rows], spaces.second[part.rows] = first, second

    def _length(self) -> Tensor:
        """Return the magnitude of the weight, a scalar; of several, one for each row, [a, 1]."""
        lengths = [part.length() for part in self.parts]
        if len(lengths) == 1:
            return lengths[0]
        rows = [part.rows.stop - part.rows.start for part in self.parts]
        return torch.cat([one.expand(count, 1) for one, count in zip(lengths, rows, strict=True)])

    def _limit_growth(self, direction: Tensor, limit: float) -> None:
        """Shorten Σ c_f N_f in place to at most `limit` times its last length, and what is known of its parts."""
        size = self.shard.norm(direction)
        if self._last_size is not None:
            most = torch.where(self._last_size > 0, self._last_size * limit, size)
            shortened = (most / size.clamp(min=torch.finfo(size.dtype).tiny)).clamp(max=1)
            direction.mul_(shortened)
            size = size * shortened
            for task in self.moved:
                self.moved[task] = self.moved[task] * shortened.square()
                self._factors[task] = self._factors[task] * shortened
        self._last_size = size

    def state_dict(self) -> dict[str, object]:
        """Return the subspaces, the remainder of a bf16 weight, and the figures of the last update.

        What has rows is one tensor, or several by the name of the part; of a sharded weight, it is a `DTensor`.
        """
        last = self._last
        lows = [part.remainder.low for part in self.parts if part.remainder is not None]
        spaces = self.subspaces.state_dict()
        return spaces | {
            "first": self._by_part(self.subspaces.first),
            "second": self._by_part(self.subspaces.second),
            "remainder": self._by_part(lows[0] if len(lows) == 1 else torch.cat(lows)) if lows else None,
            "moved": dict(self.moved),
            "factors": {
                task: self._by_part(factor) if isinstance(factor, Tensor) and factor.ndim else factor
                for task, factor in self._factors.items()
            },
            "last_size": self._last_size,
            "last_rates": None if last is None else [last.rate, last.decay, list(last.betas), last.eps],
        }

    def _by_part(self, tensor: Tensor) -> Tensor | dict[str, Tensor]:
        """Return a tensor of own rows as one tensor of all rows, or as one for each part, by name."""
        if len(self.parts) == 1:
            return self.shard.whole(tensor)
        return {part.name: part.shard.whole(tensor[part.rows]) for part in self.parts}

    def own_rows(self, state: dict[str, object]) -> dict[str, object]:
        """Return a state with the rows that this process holds. Raises `ValueError` if it is from other weights."""

        def own(stored: object) -> object:
            if isinstance(stored, dict):
                if list(stored) != [part.name for part in self.parts]:
                    raise ValueError(f"the weights {', '.join(stored)} share its basis")
                return torch.cat([part.shard.own(stored[part.name]) for part in self.parts])
            return self.shard.own(stored) if isinstance(stored, Tensor) and stored.ndim else stored

        rows = {name: own(state[name]) for name in ("first", "second", "remainder")}
        factors: Mapping[str, object] = state["factors"]  # type: ignore[assignment]
        return state | rows | {"factors": {task: own(factor) for task, factor in factors.items()}}

    def check_state(self, state: dict[str, object]) -> None:
        """Raise `ValueError` if a state of `own_rows` is from another configuration."""
        if (state["remainder"] is None) != (self.parts[0].remainder is None):
            raise ValueError("it has weights of another type")
        self.subspaces.check_state(state)

    def load_state_dict(self, state: dict[str, object]) -> None:
        """Restore a state that `check_state` accepts."""
        remainder, rates = state["remainder"], state["last_rates"]
        self.subspaces.load_state_dict(state)
        for part in self.parts:
            if part.remainder is not None:
                assert isinstance(remainder, Tensor)
                part.remainder.low.copy_(remainder[part.rows])
        self._directions = {}
        device = self.subspaces.basis.device
        self.moved = {task: size.to(device) for task, size in state["moved"].items()}  # type: ignore[attr-defined]
        self._factors = {
            task: factor.to(device) if isinstance(factor, Tensor) else factor
            for task, factor in state["factors"].items()  # type: ignore[attr-defined]
        }
        size = state["last_size"]
        self._last_size = size.to(device) if isinstance(size, Tensor) else None
        if rates is None:
            self._last = None
        else:
            rate, decay, betas, eps = rates  # type: ignore[misc]
            self._last = Rates(rate, decay, (betas[0], betas[1]), eps)  # type: ignore[has-type]


def make_weights(
    matrices: Sequence[Matrix], sites: Iterable[Sequence[str]], sizes: Ranks, rules: Rules
) -> list[ProjectedWeight]:
    """Make the weights of an optimizer. Warns its caller's caller if wanted ranks are cut down, and says where.

    sites: names of matrices that share a basis; see `stacks`.
    """
    weights, cut = [], []
    groups = stacks(matrices, sites)
    for index, group in enumerate(groups):
        first = group[0]
        n = first.shape[1]
        m = sum(matrix.shape[0] for matrix in group)
        own = replace(rules, knowledge=None, output_bases=False) if first.is_table else rules
        if own.knowledge is not None and len({own.knowledge.site_of[each.name] for each in group}) > 1:
            raise GemsError(
                f"{', '.join(each.name for each in group)} read different inputs, by the knowledge basis, and cannot "
                "share a basis"
            )
        hard = own.knowledge is not None and own.softness is None
        known = own.knowledge.size(first.name, own.energy, int(own.cap * n)) if own.knowledge and hard else 0
        allotment = sizes.allot(first.name, (m, n), own.tasks, known)
        weights.append(ProjectedWeight(group, index, allotment.ranks, known, own))
        if not allotment.fits:
            cut.append((first.name, m, n, known, allotment.ranks))
    if cut:
        name, m, n, known, ranks = cut[0]
        sizes_of = " + ".join(str(ranks[family]) for family in (SHARED, *rules.tasks[:1]))
        warnings.warn(
            f"the ranks were cut down in {len(cut)} of {len(groups)} weights, because the shared and a task's basis "
            f"have at most min(outputs, inputs − protected directions) directions together: {name} ({m} × {n}, "
            f"{known} protected) has {sizes_of}; see GEMS.ranks",
            stacklevel=3,
        )
    return weights
