"""Full tuning: AdamW on every weight that is not frozen, the tasks weighted by their share of the items."""

from __future__ import annotations

from transformers import PreTrainedModel

from training.methods.adamw import AdamWTuning, Reduce, split_by_decay, trainable
from training.methods.method import Setup
from training.model.rows import AddedRows


class FullTuning(AdamWTuning):
    """AdamW on every weight of the model that is not frozen; matrices decay, norms and biases do not.

    rows: the added token rows if they are weights of their own.
    """

    def __init__(
        self,
        model: PreTrainedModel,
        *,
        learning_rate: float,
        weight_decay: float,
        clip: float,
        rows: AddedRows | None = None,
        relative: bool = False,
        reduce: Reduce = lambda tensors: None,
    ) -> None:
        decayed, undecayed = split_by_decay(trainable(model, rows))
        super().__init__(
            decayed,
            undecayed,
            learning_rate=learning_rate,
            weight_decay=weight_decay,
            clip=clip,
            relative=relative,
            reduce=reduce,
        )
        self.rows = rows


def make(setup: Setup) -> FullTuning:
    """Train every weight, unless the settings leave those outside of the linear layers frozen."""
    return FullTuning(
        setup.model,
        rows=setup.other_weights("trained").rows,
        relative=setup.config.optimiser.relative,
        reduce=setup.parallel.sum,
        **setup.adamw,
    )
