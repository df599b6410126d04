"""Full tuning: AdamW on every weight, the tasks weighted by their share of the items."""

from __future__ import annotations

from transformers import PreTrainedModel

from training.methods.adamw import AdamWTuning, Reduce, split_by_decay
from training.methods.method import Setup


class FullTuning(AdamWTuning):
    """min Σ_task share_task · L_task with decoupled weight decay on matrices (not on norms and biases)."""

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
        setup.model, relative=setup.config.relative_rate, reduce=setup.parallel.sum, **setup.adamw
    )
