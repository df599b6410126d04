"""Full tuning: AdamW on every weight, the tasks weighted by their share of the items."""

from __future__ import annotations

from transformers import PreTrainedModel

from training.methods.adamw import AdamWTuning, Reduce, split_by_decay
from training.methods.method import Setup


class FullTuning(AdamWTuning):
    """AdamW on every weight of the model; matrices decay, norms and biases do not."""

    def __init__(
        self,
        model: PreTrainedModel,
        *,
        learning_rate: float,
        weight_decay: float,
        clip: float,
        relative: bool = False,
        reduce: Reduce = lambda tensors: None,
    ) -> None:
        decayed, undecayed = split_by_decay(p for p in model.parameters() if p.requires_grad)
        super().__init__(
            decayed,
            undecayed,
            learning_rate=learning_rate,
            weight_decay=weight_decay,
            clip=clip,
            relative=relative,
            reduce=reduce,
        )


def make(setup: Setup) -> FullTuning:
    """Train every weight."""
    return FullTuning(
        setup.model, relative=setup.config.optimiser.relative, reduce=setup.parallel.sum, **setup.adamw
    )
