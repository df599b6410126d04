"""The interface between a baseline and the training loop."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np
from numpy.typing import NDArray
from torch import Tensor, nn

from training.evaluation.scoring import ScoreCases


@dataclass(frozen=True)
class Baseline:
    """An untrained model, with the functions to train it and to score cases.

    epochs: largest number of epochs.
    batches: epoch (1, 2, ...) → its batches; the same epoch always has the same batches.
    loss_of: batch → scalar loss.
    score: cases → scores of all items, with the weights at the last `refresh`.
    refresh: called before cases are scored, whenever the weights have changed.
    vectors: returns the current item vectors, float32 [N, D]; None if the baseline has none to export.
    language: the items' language vectors, float32 [N, d], if they were made here; kept for a resumed run.
    notes: further figures for evaluation.json.
    """

    model: nn.Module
    epochs: int
    batches: Callable[[int], Sequence[Any]]
    loss_of: Callable[[Any], Tensor]
    score: ScoreCases
    refresh: Callable[[], object] = lambda: None
    vectors: Callable[[], NDArray[np.float32]] | None = None
    language: NDArray[np.float32] | None = None
    notes: dict[str, Any] = field(default_factory=dict)
