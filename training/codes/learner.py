"""Learner of codes: a module that holds the language model and what makes the codes, trained step by step."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Iterator
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import nn
from transformers import PreTrainedModel

from index.identifiers.codebooks import Codebooks
from training.config import TrainConfig
from training.config.groups import OptimiserSettings
from training.methods.adamw import AdamWTuning, split_by_decay
from training.prepare.preparation import Prepared


class CodeLearner(nn.Module, ABC):
    """A language model and codes that learn together. All of it that changes is in parameters, buffers and optimisers.

    model: the language model.
    steps_per_epoch: steps in which the log is read once.
    """

    optimisers: Optimisers
    steps_per_epoch: int

    def __init__(self, prepared: Prepared, config: TrainConfig) -> None:
        """Take the model and the item vectors of a preparation with semantic identifiers."""
        super().__init__()
        self.model: PreTrainedModel = prepared.model
        self._config = config
        self._vectors: NDArray[np.float32] = np.load(prepared.vectors, allow_pickle=False).astype(np.float32)

    @abstractmethod
    def batches(self, step: int) -> Iterator[Any]:
        """Yield the batches from a step on, without end: a pure function of the seed, the step, and the buffers."""

    @abstractmethod
    def step(self, batch: Any, share: float) -> dict[str, float]:
        """Make one update. Return its figures.

        share: how much of the stage is over, in [0, 1).
        Raises `ArithmeticError` if a gradient is not finite.
        """

    @abstractmethod
    def finish(self) -> tuple[Codebooks, NDArray[np.int32], dict[str, float]]:
        """Return the codebooks that name later items, the codes of the items, int32 [N, levels], and figures."""


class Optimisers:
    """AdamW of every weight of a model, at the rate of the training, and of the codes, at rates of their own."""

    def __init__(
        self, model: PreTrainedModel, settings: OptimiserSettings, codes: list[dict[str, Any]] | None = None
    ) -> None:
        """Take the weights.

        codes: groups of parameters, each with its learning rate `lr`; none if the codes are rows of the model.
        """
        decayed, undecayed = split_by_decay(model.parameters())
        self._model = AdamWTuning(
            decayed,
            undecayed,
            learning_rate=settings.learning_rate,
            weight_decay=settings.weight_decay,
            clip=settings.clip,
            relative=settings.relative,
        )
        self._rate = settings.learning_rate
        self._rates = [group["lr"] for group in codes or []]
        self._codes = torch.optim.AdamW(codes, weight_decay=0.0) if codes else None

    def step(self, factor: float) -> None:
        """Update, and drop the gradients. factor: on all rates. Raises `ArithmeticError`, see `CodeLearner.step`."""
        self._model.step(self._rate * factor)
        if self._codes is not None:
            for group, rate in zip(self._codes.param_groups, self._rates, strict=True):
                group["lr"] = rate * factor
            self._codes.step()
            self._codes.zero_grad(set_to_none=True)

    def state_dict(self) -> dict[str, Any]:
        codes = {} if self._codes is None else self._codes.state_dict()
        return {"model": self._model.state_dict(), "codes": codes}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        self._model.load_state_dict(state["model"])
        if self._codes is not None:
            self._codes.load_state_dict(state["codes"])
