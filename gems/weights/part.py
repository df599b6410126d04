"""One matrix of a projected weight: where its values are, and its rows among those that share a basis."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor, nn

from gems.model.layers import Matrix
from gems.weights.numerics import Remainder, magnitude


@dataclass(frozen=True)
class Rates:
    """Rates of one step, from the optimizer's parameter group.

    rate: learning rate times scale.
    decay: learning rate times weight decay.
    betas, eps: Adam's.
    """

    rate: float
    decay: float
    betas: tuple[float, float]
    eps: float


class Part:
    """A matrix W [m, n], seen as [a, b]: as it is, or as Wᵀ where the bases are of outputs.

    rows: its a rows among those of all matrices that share the basis.
    reached: whether a gradient has come since the last step. used: whether one has ever come.
    remainder: the rest of the float32 value of a bf16 weight.
    """

    def __init__(self, matrix: Matrix, start: int, *, on_outputs: bool) -> None:
        self.matrix = matrix
        self._on_outputs = on_outputs
        view = self.seen(matrix.parameter.detach())
        self.rows = slice(start, start + view.shape[0])
        self.remainder = Remainder(view) if view.dtype == torch.bfloat16 else None
        self.reached = self.used = False

    @property
    def name(self) -> str:
        """Name of the weight."""
        return self.matrix.name

    @property
    def parameter(self) -> nn.Parameter:
        """The parameter that holds the weight."""
        return self.matrix.parameter

    def seen(self, tensor: Tensor) -> Tensor:
        """Return the view [a, b] of a tensor in the form of the parameter."""
        matrix = self.matrix.of(tensor)
        return matrix.T if self._on_outputs else matrix

    def exact(self) -> Tensor:
        """Return the weight [m, n]; in float32 if it is bf16."""
        weight = self.matrix.of(self.parameter.detach())
        if self.remainder is None:
            return weight
        exact = self.remainder.exact(self.seen(self.parameter.detach()))
        return exact.T if self._on_outputs else exact

    def note_gradient(self) -> None:
        """Count a gradient of this matrix."""
        self.reached = self.used = True

    def length(self) -> Tensor:
        """Return the magnitude of the weight, a scalar."""
        return magnitude(self.seen(self.parameter.detach()))

    def update(self, direction: Tensor, basis: Tensor, rates: Rates) -> None:
        """Apply W ← (1 − decay) W − rate · N Vᵀ. direction: N of all rows, [·, q]; basis: V [b, q]."""
        view = self.seen(self.parameter.detach())
        exact = view if self.remainder is None else self.remainder.exact(view)
        if rates.decay:
            exact.mul_(1 - rates.decay)
        exact.addmm_(direction[self.rows], basis.T, alpha=-rates.rate)
        if self.remainder is not None:
            self.remainder.store(view, exact)
