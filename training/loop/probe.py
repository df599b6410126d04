"""Measurement of the conflict of the two tasks, on the same cases throughout a run."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import torch
from torch import nn
from transformers import PreTrainedModel

from gems import measure_conflict, plain_gradients
from index.sequence.encoder import SequenceEncoder
from index.sequence.events import Task
from training.config import TrainConfig
from training.data.splits import Case
from training.evaluation.ranking import cases_of
from training.loop.losses import item_losses
from training.loop.pairs import Pairs
from training.loop.validation import held_out_parts


class ConflictProbe:
    """Conflict ρ = 1 − cos(g_search, g_recommendation) of the given weights, for every method.

    weights: weights of the plain model by name, taken before a method wraps its layers.
    """

    def __init__(
        self,
        model: PreTrainedModel,
        encoder: SequenceEncoder,
        cases: Sequence[Case],
        weights: Mapping[str, nn.Parameter],
        config: TrainConfig,
        pairs: Pairs | None = None,
    ) -> None:
        self._model = model
        self._vocabulary = encoder.vocabulary
        self._normalisation = config.identifiers.normalisation
        self._weights = weights
        chosen = {task: cases_of(task, cases)[: config.validation.conflict_cases] for task in Task}
        self._parts = {
            task: held_out_parts(encoder, found, task, pairs) for task, found in chosen.items() if found
        }

    def __call__(self) -> dict[str, float]:
        """Return ρ by weight name; empty if a task has no case. The model stays as it was."""
        if len(self._parts) < 2:
            return {}
        before = [weight.requires_grad for weight in self._weights.values()]
        training = self._model.training
        self._model.eval()
        try:
            for weight in self._weights.values():
                weight.requires_grad_(True)
            with torch.enable_grad(), plain_gradients():
                losses = {
                    task.value: torch.stack(
                        [
                            item_losses(self._model, self._vocabulary, part, self._normalisation)[task]
                            for part in parts
                        ]
                    ).sum()
                    for task, parts in self._parts.items()
                }
                return measure_conflict(losses, self._weights)
        finally:
            self._model.train(training)
            for weight, trained in zip(self._weights.values(), before, strict=True):
                weight.requires_grad_(trained)
