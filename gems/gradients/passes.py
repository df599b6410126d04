"""The backward passes of a step: whose gradient is passing, and which weights want it whole."""

from __future__ import annotations

import weakref
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils.hooks import RemovableHandle
from torch.utils.weak import WeakTensorKeyDictionary

from gems.gradients.held import HeldGradients
from gems.gradients.schedule import RefreshSchedule
from gems.model.errors import GemsError
from gems.model.linear import Route, RoutedLinear, SharedInner
from gems.model.precision import full_precision
from gems.weights.part import Part
from gems.weights.projected import ProjectedWeight
from gems.weights.ranks import SHARED
from gems.weights.shards import local

JOINT = "joint"  # a pass of the summed loss
_OWNERS: Any = WeakTensorKeyDictionary()  # parameter → weak reference to the `Passes` that it is connected to


class Passes:
    """Connection of a model to its optimizer: gradients arrive projected from `RoutedLinear`, or whole from a hook.

    steps: steps of the optimizer so far.
    The hooks hold no reference to this object: a model whose optimizer is gone is a plain model.
    Raises `GemsError` if the model is connected to another optimizer.
    """

    def __init__(
        self,
        weights: Sequence[ProjectedWeight],
        held: HeldGradients,
        tasks: Sequence[str],
        schedule: RefreshSchedule,
        *,
        joint: bool,
    ) -> None:
        self.steps = 0
        self._weights = weights
        self._held = held
        self._tasks = tuple(tasks)
        self._schedule = schedule
        self._joint = joint
        self._current: str | None = None
        self._marks: dict[int, tuple[int, Tensor]] = {}
        self._hooks: list[RemovableHandle] = []
        self._routed: list[nn.Linear] = []
        self._inner: dict[int, SharedInner] = {}
        parts = [(k, part) for k, weight in enumerate(weights) for part in weight.parts]
        for _, part in parts:
            owner = _OWNERS.get(part.parameter)
            if owner is not None and owner() is not None:
                raise GemsError(
                    f"{part.name} belongs to another GEMS optimizer of this model; call its close() first"
                )
        of_parameter: dict[int, list[tuple[int, Part]]] = {}
        for k, part in parts:
            of_parameter.setdefault(id(part.parameter), []).append((k, part))
            self._route(k, part)
        for those in of_parameter.values():
            parameter = those[0][1].parameter
            self._hook(parameter, those)
            _OWNERS[parameter] = weakref.ref(self)
        self._watch(held.plain)

    def families(self, task: str) -> list[str]:
        """Return the families whose bases a task's gradient is projected into."""
        if self._joint:
            return [SHARED, *self._tasks]
        return [SHARED] if task == SHARED else [SHARED, task]

    def is_due(self, k: int) -> bool:
        """Whether the bases of weight k are refreshed in the next step."""
        return self._schedule.is_due(k, self.steps, self._weights[k].subspaces.ready)

    def refreshing(self) -> bool:
        """Whether any bases are refreshed in the next step."""
        return any(self.is_due(k) for k in range(len(self._weights)))

    @contextmanager
    def running(self, task: str) -> Iterator[None]:
        """Count the backward passes inside the block as those of a task, or of all together (`JOINT`)."""
        before, self._current = self._current, task
        try:
            yield
        finally:
            self._current = before

    def advance(self) -> None:
        """Count a step."""
        self.steps += 1
        for inner in self._inner.values():
            inner.clear()

    def changed_elsewhere(self) -> bool:
        """Whether gradients of plain parameters were changed in place after the backward pass.

        Looks at a sample of the numbers of those that were written to: a norm that is only logged is multiplied by one.
        """
        for parameter in self._held.plain:
            if parameter.grad is None or id(parameter) not in self._marks:
                continue
            version, sample = self._marks[id(parameter)]
            gradient = local(parameter.grad)
            if gradient._version != version and not torch.equal(_sample(gradient), sample):
                return True
        return False

    def close(self) -> None:
        """Detach from the model: its layers are plain ones again and compute their own gradients."""
        for hook in self._hooks:
            hook.remove()
        for linear in self._routed:
            RoutedLinear.remove(linear)
        for weight in self._weights:
            for part in weight.parts:
                _OWNERS.pop(part.parameter, None)
        self._hooks, self._routed = [], []

    def _task(self) -> str:
        """Return the task of the pass that runs now."""
        if self._current is not None:
            return self._current
        if len(self._tasks) > 1:
            raise GemsError(
                "tasks must be told apart: call optimizer.backward(losses), or loss.backward() inside "
                "`with optimizer.task(name):`"
            )
        task = self._tasks[0] if self._tasks else SHARED
        self._held.seen.add(task)
        return task

    def _route(self, k: int, part: Part) -> None:
        """Let a linear layer compute its projected gradient itself, where that is less work."""
        weight = self._weights[k]
        layer = part.matrix.layer
        n, q = weight.subspaces.basis.shape
        if not isinstance(layer, nn.Linear) or type(layer) not in (nn.Linear, RoutedLinear) or q >= n:
            return
        me = weakref.ref(self)

        def basis() -> Tensor | None:
            passes = me()
            if passes is None:
                return None
            spaces = passes._weights[k].subspaces
            return spaces.basis if spaces.ready and not passes.is_due(k) else None

        def receive(gradient: Tensor) -> None:
            passes = me()
            if passes is not None:
                families = passes.families(passes._task())
                passes._weights[k].receive(part, gradient, families, passes._held.alignment)

        inner = self._inner.setdefault(k, SharedInner())
        inner.layers += 1
        RoutedLinear.install(layer, Route(basis, receive, inner, on_outputs=weight.on_outputs))
        self._routed.append(layer)

    def _hook(self, parameter: nn.Parameter, parts: Sequence[tuple[int, Part]]) -> None:
        """Project the whole gradient of a parameter, if it has one, as soon as it is there, and free it."""
        me = weakref.ref(self)

        def take(parameter: nn.Parameter) -> None:
            passes = me()
            if passes is None or parameter.grad is None:  # the optimizer is gone, or it arrived projected
                return
            gradient, parameter.grad = parameter.grad, None
            task = passes._task()
            with full_precision([gradient.device.type]):
                for k, part in parts:
                    passes._weights[k].take(
                        part,
                        gradient,
                        task,
                        passes.families(task),
                        keep=passes.is_due(k),
                        alignment=passes._held.alignment,
                    )

        self._hooks.append(parameter.register_post_accumulate_grad_hook(take))  # type: ignore[no-untyped-call]

    def _watch(self, plain: Sequence[nn.Parameter]) -> None:
        """Mark the gradients of plain parameters after each backward pass, for `changed_elsewhere`."""
        me, marks = weakref.ref(self), self._marks

        def mark(parameter: nn.Parameter) -> None:
            passes = me()
            if passes is not None and parameter.grad is not None:
                if passes._current is None and len(passes._tasks) < 2:
                    passes._task()  # the loss may reach nothing else
                gradient = local(parameter.grad)
                marks[id(parameter)] = (gradient._version, _sample(gradient))

        for parameter in plain:
            self._hooks.append(parameter.register_post_accumulate_grad_hook(mark))  # type: ignore[no-untyped-call]


def _sample(gradient: Tensor) -> Tensor:
    """Return a copy of at most 128 numbers of a gradient."""
    flat = gradient.detach().reshape(-1)
    return flat[:: max(1, len(flat) // 64)].clone()
