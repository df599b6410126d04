"""SASRec on a data set, with the item vectors of the settings."""

from __future__ import annotations

from collections.abc import Sequence
from functools import partial
from pathlib import Path

import numpy as np
import torch
import torch.nn.functional as F
from numpy.typing import NDArray
from rich.console import Console
from torch import Tensor

from index.identifiers.alphafuse import FusedVectors
from training.baselines.baseline import Baseline
from training.baselines.item_vectors import item_vectors
from training.baselines.language import language_vectors
from training.baselines.sasrec import SASRec, catalogue_cross_entropy
from training.baselines.sequences import Batch, epoch_batches, item_rows, read_cases
from training.baselines.settings import BaselineError, SASRecSettings
from training.data.dataset import DataSet
from training.data.splits import Case, Split
from training.data.vectors import read_vectors


def sasrec(
    settings: SASRecSettings, dataset: DataSet, split: Split, language: Path | None, console: Console
) -> Baseline:
    """Return SASRec as a baseline, trained with cross-entropy of the next item over the full catalogue.

    With h_t the state after event t, and s a cosine, unless `settings.scores` asks for products (the lengths of item
    vectors differ between their sources):

        p(i | 1 .. t) = softmax_i( s(h_t, e_i) / τ )

    language: file of the items' language vectors; None: they are made if they are needed.
    Raises `BaselineError` if no user has two training events.
    """
    histories = item_rows(split.train)
    if not histories:
        raise BaselineError("no user has two events to train on")
    catalogue = dataset.catalogue
    known = made = None
    if settings.items != "id":
        if language is None:
            made = language_vectors(catalogue, console)
        known = made if language is None else read_vectors(language, catalogue.item_ids)
    items = item_vectors(settings, len(catalogue), known)
    model = SASRec(
        items, settings.hidden, layers=settings.layers, heads=settings.heads, dropout=settings.dropout,
        max_events=settings.max_events,
    )  # fmt: skip

    cosines = settings.scores == "cosine"
    temperature = settings.temperature or (0.07 if cosines else 1.0)

    def measured(vectors: Tensor) -> Tensor:
        return F.normalize(vectors, dim=1) if cosines else vectors

    def batches(epoch: int) -> list[Batch]:
        rng = np.random.default_rng([settings.seed, epoch])
        return epoch_batches(histories, settings.max_events, settings.batch_size, rng)

    def loss_of(batch: Batch) -> Tensor:
        vectors = model.items()
        states = model.states(vectors, batch.rows)[batch.targets >= 0]
        return catalogue_cross_entropy(
            measured(states) / temperature, measured(vectors), batch.targets[batch.targets >= 0]
        )

    notes = {}
    if isinstance(items, FusedVectors):
        notes = {"semantic": items.frozen.shape[1], "null": items.learned.shape[1]}
    return Baseline(
        model, settings.epochs, batches, loss_of, partial(score_cases, model, cosines=cosines),
        vectors=lambda: items().detach().numpy(),
        language=made,
        notes=notes,
    )  # fmt: skip


@torch.inference_mode()
def score_cases(model: SASRec, cases: Sequence[Case], *, cosines: bool = True) -> NDArray[np.float32]:
    """Return the cosine or product of the state after each case's history with every item: float32 [cases, N]."""
    vectors = model.items()
    rows, last = read_cases(cases, model.max_events)
    states = model.states(vectors, rows)[torch.arange(len(cases)), last]
    if cosines:
        states, vectors = F.normalize(states, dim=1), F.normalize(vectors, dim=1)
    scores: NDArray[np.float32] = (states @ vectors.T).numpy()
    return scores
