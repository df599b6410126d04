"""One matrix of a projected weight: where its values are, and its rows among those that share a basis."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor, nn

from gems.model.errors import GemsError
from gems.model.layers import Matrix
from gems.weights.numerics import Remainder, magnitude
from gems.weights.shards import is_spread, local, rows_of


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

    shard: the rows that this process holds; a counts these only.
    rows: its a rows among those of all matrices that share the basis.
    summands: by families, projected gradients [rows of all processes, q] that are not summed over the processes yet.
    reached: whether a gradient has come since the last step. used: whether one has ever come.
    remainder: the rest of the float32 value of a bf16 weight.
    """

    def __init__(self, matrix: Matrix, start: int, *, on_outputs: bool) -> None:
        self.matrix = matrix
        self._on_outputs = on_outputs
        if matrix.expert is not None and is_spread(matrix.parameter):
            raise GemsError(
                f"{matrix.name} is sharded, which GEMS cannot do with fused experts: leave their module out of "
                "fully_shard"
            )
        self.shard = rows_of(matrix.parameter, int(matrix.transposed != on_outputs), matrix.name)
        self.summands: dict[tuple[str, ...], Tensor] = {}
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
        """Return the view [a, b] of a tensor in the form of the parameter: its rows that are here."""
        matrix = self.matrix.of(local(tensor))
        return matrix.T if self._on_outputs else matrix

    def exact(self) -> Tensor:
        """Return the weight [m, n]; in float32 if it is bf16. A sharded one is a `DTensor`."""
        exact = self.seen(self.parameter.detach())
        if self.remainder is not None:
            exact = self.remainder.exact(exact)
        exact = self.shard.whole(exact)
        return exact.T if self._on_outputs else exact

    @torch.no_grad()
    def narrow(self) -> None:
        """Hold a float32 weight as bf16 from now on, and the rest of its value beside it: no number changes."""
        exact = self.parameter.detach()
        self.parameter.data = exact.to(torch.bfloat16)
        view = self.seen(self.parameter.detach())
        self.remainder = Remainder(view)
        self.remainder.store(view, self.seen(exact).contiguous())

    @torch.no_grad()
    def widen(self) -> None:
        """Hold the weight as float32 again, with its exact value. Undoes `narrow`."""
        if self.remainder is None:
            return
        view = self.seen(self.parameter.detach())
        exact = self.remainder.exact(view)
        self.parameter.data = self.parameter.detach().float()
        self.seen(self.parameter.detach()).copy_(exact)
        self.remainder = None

    def note_gradient(self) -> None:
        """Count a gradient of this matrix."""
        self.reached = self.used = True

    def length(self) -> Tensor:
        """Return the magnitude of the weight, a scalar."""
        return magnitude(self.seen(self.parameter.detach()), self.shard)

    def update(self, direction: Tensor, basis: Tensor, rates: Rates) -> None:
        """Apply W ← (1 − decay) W − rate · N Vᵀ. direction: N of all rows, [·, q]; basis: V [b, q]."""
        view = self.seen(self.parameter.detach())
        exact = view if self.remainder is None else self.remainder.exact(view)
        if rates.decay:
            exact.mul_(1 - rates.decay)
        exact.addmm_(direction[self.rows], basis.T, alpha=-rates.rate)
        if self.remainder is not None:
            self.remainder.store(view, exact)
