"""SASRec on a data set, with the item vectors of the settings."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import numpy as np
import torch
import torch.nn.functional as F
from numpy.typing import NDArray
from rich.console import Console
from torch import Tensor, nn

from index.identifiers.alphafuse import FusedVectors
from index.sequence.events import Task
from training.baselines.baseline import Baseline
from training.baselines.item_vectors import item_vectors
from training.baselines.language import given_or_made
from training.baselines.networks.sasrec import SASRec
from training.baselines.sequences import Batch, epoch_batches, item_rows, read_cases, thinned
from training.baselines.settings import BaselineError, ItemKind, SASRecSettings
from training.data.dataset import DataSet
from training.data.splits import Case, Split
from training.loop.cross_entropy import summed_cross_entropy


def sasrec(
    settings: SASRecSettings, dataset: DataSet, split: Split, language: Path | None, console: Console
) -> Baseline:
    """Return SASRec as a baseline, trained with cross-entropy of the next item over the full catalogue.

    With h_t the state after event t, and s a cosine, unless `settings.scores` asks for products (the lengths of item
    vectors differ between their sources):

        p(i | 1 .. t) = softmax_i( s(h_t, e_i) / τ )

    An ensemble has a model for each kind of item vectors, with a loss of its own; their scores are added (EnsRec).

    language: file of the items' language vectors; None: they are made if they are needed.
    Raises `BaselineError` if no user has two training events.
    """
    histories = item_rows(split.train)
    if not histories:
        raise BaselineError("no user has two events to train on")
    catalogue = dataset.catalogue
    known = made = None
    if settings.items != "id":
        known, made = given_or_made(language, catalogue, console)
    members = [_model(settings, kind, len(catalogue), known) for kind in settings.kinds]
    score = Score(settings.scores == "cosine", settings.temperature)

    def batches(epoch: int) -> list[Batch]:
        rng = np.random.default_rng([settings.seed, epoch])
        seen = thinned(histories, settings.event_dropout, rng) if settings.event_dropout else histories
        return epoch_batches(seen, settings.max_events, settings.batch_size, rng)

    def loss_of(batch: Batch) -> Tensor:
        return torch.stack([score.loss(model, batch) for model in members]).sum()

    alone = members[0] if len(members) == 1 else None
    notes = {}
    if alone is not None and isinstance(alone.items, FusedVectors):
        notes = {"semantic": alone.items.frozen.shape[1], "null": alone.items.learned.shape[1]}
    return Baseline(
        alone or nn.ModuleList(members),
        settings.epochs,
        batches,
        loss_of,
        {Task.RECOMMENDATION: lambda cases: np.sum([score.of_cases(m, cases) for m in members], axis=0)},
        vectors=None if alone is None else lambda: alone.items().detach().numpy(),
        language=made,
        notes=lambda: notes,
    )


def _model(
    settings: SASRecSettings, kind: ItemKind, count: int, language: NDArray[np.float32] | None
) -> SASRec:
    return SASRec(
        item_vectors(settings, kind, count, language), settings.hidden, layers=settings.layers,
        heads=settings.heads, dropout=settings.dropout, max_events=settings.max_events,
    )  # fmt: skip


class Score:
    """Score of a state with an item's vector: cosine or product, over a temperature."""

    def __init__(self, cosines: bool, temperature: float | None) -> None:
        self._cosines = cosines
        self._temperature = temperature or (0.07 if cosines else 1.0)

    def loss(self, model: SASRec, batch: Batch) -> Tensor:
        """Return the mean cross-entropy of a batch, a scalar."""
        vectors, known = model.items(), batch.targets >= 0
        states = self._measured(model.states(vectors, batch.rows)[known]) / self._temperature
        return summed_cross_entropy(states, self._measured(vectors), batch.targets[known]) / len(states)

    @torch.inference_mode()
    def of_cases(self, model: SASRec, cases: Sequence[Case]) -> NDArray[np.float32]:
        """Return the score of the state after each case's history with every item: float32 [cases, N]."""
        vectors = model.items()
        rows, last = read_cases(cases, model.max_events)
        states = model.states(vectors, rows)[torch.arange(len(cases)), last]
        scores: NDArray[np.float32] = (
            self._measured(states) @ self._measured(vectors).T / self._temperature
        ).numpy()
        return scores

    def _measured(self, vectors: Tensor) -> Tensor:
        return F.normalize(vectors, dim=1) if self._cosines else vectors
