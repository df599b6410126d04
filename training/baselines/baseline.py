"""The interface between a baseline and the training loop."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Protocol

import numpy as np
from numpy.typing import NDArray
from torch import Tensor, nn

from index.sequence.events import Task
from training.data.splits import Case
from training.evaluation.scoring import ScoreCases


class Batches(Protocol):
    """The batches of an epoch. Each is made at its turn, so that it may depend on the weights of that moment."""

    def __len__(self) -> int: ...

    def __iter__(self) -> Iterator[Any]: ...


TaskCases = Mapping[Task, Sequence[Case]]  # cases of each task


@dataclass(frozen=True)
class Baseline:
    """An untrained model, with the functions to train it and to score cases.

    epochs: largest number of epochs.
    batches: epoch (1, 2, ...) → its batches; the same epoch from the same weights always has the same batches.
    loss_of: batch → scalar loss.
    scores: for each task, cases → scores of all items, with the weights at the last `refresh`.
    refresh: called before cases are scored, whenever the weights have changed.
    choose: called after it with the validation cases, to choose what is not trained; it is kept in the model's buffers.
    vectors: returns the current item vectors, float32 [N, D]; None if the baseline has none to export.
    language: the items' language vectors, float32 [N, d], if they were made here; kept for a resumed run.
    notes: returns further figures for evaluation.json.
    """

    model: nn.Module
    epochs: int
    batches: Callable[[int], Batches]
    loss_of: Callable[[Any], Tensor]
    scores: Mapping[Task, ScoreCases]
    refresh: Callable[[], object] = lambda: None
    choose: Callable[[TaskCases], object] = lambda cases: None
    vectors: Callable[[], NDArray[np.float32]] | None = None
    language: NDArray[np.float32] | None = None
    notes: Callable[[], dict[str, Any]] = dict
