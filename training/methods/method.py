"""Interface of the tuning methods: `Setup` is the input of a method's factory, `Method` is its result."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any, Protocol, runtime_checkable

import torch
from torch import Tensor
from transformers import PreTrainedModel

from gems import KnowledgeBasis
from index.sequence.events import Task
from training.config import TrainConfig
from training.methods.other_weights import OtherWeights
from training.model.rows import AddedRows
from training.run.parallel import Parallel


@dataclass(frozen=True)
class Setup:
    """Input of a method's factory: each module of `training.methods.tuning` has a function `make(setup) -> Method`.

    model: the extended backbone; all of its weights are trainable.
    config: settings of the training.
    first_added: id of the first added token; the rows from there on are new.
    knowledge: basis of directions to leave alone, if there is one.
    parallel: the processes that train together.
    """

    model: PreTrainedModel
    config: TrainConfig
    first_added: int
    knowledge: KnowledgeBasis | None = None
    parallel: Parallel = field(default_factory=Parallel)

    @property
    def adamw(self) -> dict[str, float]:
        """The settings that every AdamW takes, under their own names."""
        optimiser = self.config.optimiser
        return {
            "learning_rate": optimiser.learning_rate,
            "weight_decay": optimiser.weight_decay,
            "clip": optimiser.clip,
        }

    def other_weights(self, default: str) -> OtherWeights:
        """Choose the trained weights outside of the linear layers, and freeze the rest of them.

        default: what the method does unless the setting says otherwise.
        """
        return OtherWeights.of(self.model, self.first_added, self.config.optimiser.other_weights or default)


@dataclass(frozen=True)
class SamplesOfPass:
    """The samples of a forward pass, on the host.

    kind: int8 [B, T], 1 on the tokens of samples that are knowledge, 0 on those of others, -1 on padding.
    position: place of each token in its sample, int64 [B, T], if samples share rows.
    attended: tokens that an encoder reads, bool [B, P]; None for a decoder-only model.
    share: of the passes of the whole step.
    """

    kind: Tensor
    position: Tensor | None
    attended: Tensor | None
    share: float


class Method(Protocol):
    """Turns losses into updates. A step is any number of calls of `backward`, then one call of `step`.

    exportable: whether `merge` leaves a plain checkpoint.
    rows: the added token rows if they are weights of their own; the losses must then be computed with them.
    """

    exportable: bool
    rows: AddedRows | None

    @property
    def adamw(self) -> torch.optim.AdamW | None:
        """The AdamW of plain weights, whose moments are made in its first step; None if there are none."""
        ...

    def backward(self, losses: Mapping[Task, Tensor], shares: Mapping[Task, float]) -> None:
        """Accumulate gradients of one part of the step.

        losses: scalars by task, the part's contribution to the mean loss per item; the parts add up.
        shares: each task's share of the items of the whole step; they add up to 1.
        """
        ...

    def step(self, learning_rate: float) -> dict[str, Any]:
        """Update the weights and drop the gradients. Return figures for `metrics.jsonl`, which may be nested.

        Raises `ArithmeticError` if a gradient is not finite; the weights stay as they are.
        """
        ...

    def merge(self) -> None:
        """Fold the trained updates into plain weights; called once, after training."""
        ...

    def costs(self) -> dict[str, int]:
        """Return `state_bytes` of the optimizer, and `gradient_bytes` held between `backward` and `step`."""
        ...

    def state_dict(self) -> dict[str, Any]:
        """Return everything that an exact resume needs in addition to the weights: tensors and plain values."""
        ...

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Restore a state that `state_dict` returned."""
        ...


@runtime_checkable
class Observer(Protocol):
    """A method that needs to know of the samples, besides their losses."""

    def observe(self, samples: SamplesOfPass) -> None:
        """Take notice of the samples of the next forward pass, whose losses `backward` gets."""
        ...


@runtime_checkable
class NarrowMethod(Method, Protocol):
    """A method that can hold weights in bfloat16; its name is in `training.config.config.NARROW`."""

    def narrow(self) -> None:
        """Hold the weights of the blocks' linear layers in bfloat16 until `widen`; called once, before the first step.

        No update is lost by it. Raises `UserError` if the method cannot.
        """
        ...

    def widen(self) -> None:
        """Hold all weights in float32 again; training cannot go on."""
        ...

    def exact_weights(self) -> dict[str, Tensor]:
        """Return the float32 values of the weights that are held in bfloat16 and trained, by name."""
        ...
