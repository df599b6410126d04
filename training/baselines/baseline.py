"""What the training loop and the ranking need of a baseline."""

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
    """A model that has not been trained yet.

    batches: epoch (1, 2, ...) → its batches, the same for the same epoch.
    loss_of: batch → scalar.
    score:   cases → scores of all items, with the weights as they are at the last `refresh`.
    refresh: called whenever the weights have changed and cases are to be scored.
    vectors: the item vectors as they are now, float32 [N, D], where the baseline has some to export.
    language: the items' language vectors that it made, float32 [N, d], to be kept for a resumed run.
    notes:   further figures for evaluation.json.
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
