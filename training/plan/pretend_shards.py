"""A model that is sharded over processes, as far as its memory is concerned: what one of them holds, and when.

Blocks are whole on the meta device, since a process computes with whole weights. What FSDP2 does to them is counted:
rows in place of weights, moments and gradients, and the gathers and reductions around each block.
"""

from __future__ import annotations

from collections.abc import Iterable

from torch import Tensor, nn
from transformers import PreTrainedModel

from gems.weights.projected import ProjectedWeight
from training.methods.method import Method
from training.methods.tuning.gems import GemsTuning
from training.plan.meter import Meter


class PretendShards:
    """Counts a model's blocks as one of several processes holds them.

    meter: what counts; inside its block.
    blocks: modules that FSDP2 wraps.
    processes: that hold the rows.
    cpu: whether they compute on CPUs, by gloo.
    """

    def __init__(
        self, model: PreTrainedModel, method: Method, processes: int, meter: Meter, *, cpu: bool
    ) -> None:
        kinds = set(model._no_split_modules or ())
        self.blocks = [module for module in model.modules() if type(module).__name__ in kinds]
        self._processes = processes
        self._meter = meter
        self._cpu = cpu
        # adapters are made after sharding, and are on all processes
        self._sharded = {
            block: [p for name, p in block.named_parameters() if "lora" not in name] for block in self.blocks
        }
        self.parameters = {id(p) for of in self._sharded.values() for p in of}
        self._weights: dict[int, ProjectedWeight] = {}
        if isinstance(method, GemsTuning):
            self._weights = {
                id(part.parameter): weight for weight in method.optimizer.weights for part in weight.parts
            }
        self._corrected = self._kept = 0
        self._backward = False
        self._open: set[nn.Module] = set()
        self._previous = 0  # bytes of the buffer of the last gather, which FSDP2 keeps until the next
        for of in self._sharded.values():
            for p in of:
                self._add(-self._absent(p))
        for weight in self._of_gems():
            spaces = weight.subspaces
            self._add(-sum(self._absent(t) for t in (spaces.first, spaces.second, spaces.projected)))
        for block in self.blocks:
            block.register_forward_pre_hook(self._before, with_kwargs=True)
            block.register_forward_hook(self._after)

    def held(self, tensors: Iterable[Tensor]) -> int:
        """Return the bytes that a process holds of weights, or of what has their shapes."""
        return sum(p.nbytes - (self._absent(p) if id(p) in self.parameters else 0) for p in tensors)

    @property
    def block_bytes(self) -> int:
        """Bytes of all sharded weights, whole."""
        return sum(p.nbytes for of in self._sharded.values() for p in of)

    def costs(self, costs: dict[str, int], method: Method) -> dict[str, int]:
        """Return the costs of a method as one process has them. costs: those of `Method.costs`, of whole weights."""
        state, gradients = costs["state_bytes"], costs["gradient_bytes"]
        spaces = [weight.subspaces for weight in self._of_gems()]
        for each in spaces:
            state -= self._absent(each.first) + self._absent(each.second)
            gradients += each.first.nbytes - self._absent(each.projected)  # summands of all rows
        if not spaces:
            trained = [p for of in self._sharded.values() for p in of if p.requires_grad]
            gradients -= sum(map(self._absent, trained))
        return {"state_bytes": state, "gradient_bytes": gradients}

    def sent(self, gradients: int) -> int:
        """Return the bytes that a process sends in a step: gathers for both passes, and gradients.

        gradients: bytes of all gradients, of whole weights.
        """
        spaces = [weight.subspaces for weight in self._of_gems()]
        trained = [p for of in self._sharded.values() for p in of if p.requires_grad]
        scattered = (
            sum(each.projected.nbytes for each in spaces) if spaces else sum(p.nbytes for p in trained)
        )
        rest = gradients - scattered
        return (self._processes - 1) * (2 * self.block_bytes + scattered + 2 * rest) // self._processes

    def _of_gems(self) -> list[ProjectedWeight]:
        return list({id(weight): weight for weight in self._weights.values()}.values())

    def forget(self) -> None:
        """Begin another pass: the gradients of the last one are gone."""
        self._add(-self._corrected - self._kept)
        self._corrected = self._kept = 0
        self._backward = False

    def _absent(self, tensor: Tensor) -> int:
        """Return the bytes of the rows that other processes hold."""
        rows = -(-len(tensor) // self._processes)
        return (len(tensor) - rows) * (tensor.nbytes // max(1, len(tensor)))

    def _add(self, size: int) -> None:
        self._meter.now += size
        self._meter.peak = max(self._meter.peak, self._meter.now)

    def _gather(self, block: nn.Module) -> None:
        if block in self._open:
            return
        self._open.add(block)
        size = sum(p.nbytes for p in self._sharded[block])
        # a flat buffer, from which each weight is copied; on a CPU those of a backward pass live until its end
        if self._backward and self._cpu:
            self._kept += size
        else:
            self._add(-self._previous)
            self._previous = size
        self._add(size)
        self._add(size)

    def _scatter(self, block: nn.Module) -> None:
        if block not in self._open:
            return
        self._open.remove(block)
        self._add(-sum(p.nbytes for p in self._sharded[block]))

    def _before(self, block: nn.Module, args: tuple[object, ...], kwargs: dict[str, object]) -> None:
        if self._backward:
            return  # computed again
        self._gather(block)
        entering = next(
            (t for t in (*args, *kwargs.values()) if isinstance(t, Tensor) and t.requires_grad), None
        )
        if entering is not None:
            entering.register_hook(lambda _: self._done(block))  # type: ignore[no-untyped-call]

    def _after(self, block: nn.Module, args: tuple[object, ...], output: object) -> None:
        if self._backward:
            return
        self._scatter(block)
        states = output[0] if isinstance(output, tuple) else output
        if isinstance(states, Tensor) and states.requires_grad:
            states.register_hook(lambda _: self._begin(block))  # type: ignore[no-untyped-call]

    def _begin(self, block: nn.Module) -> None:
        self._backward = True
        if block is self.blocks[-1]:  # another task's pass
            self._add(-self._kept)
            self._kept = 0
        self._gather(block)

    def _done(self, block: nn.Module) -> None:
        """Count the reduction of the block's gradients, of which only own rows stay."""
        gradients = [p.grad for p in self._sharded[block] if p.grad is not None]
        weights = {id(w): w for p in self._sharded[block] if (w := self._weights.get(id(p))) is not None}
        gradients += [full for weight in weights.values() for full in weight.full.values()]
        size = sum(g.nbytes for g in gradients)
        self._add(size)  # the flat buffer that is reduced
        self._add(-size)
        change = -sum(self._absent(g) for g in gradients)
        for weight in weights.values():  # summands of all rows, beside the sum of own ones
            if weight.subspaces.ready:
                change += weight.subspaces.projected.nbytes
        self._add(change)
        self._corrected += change
        self._scatter(block)
