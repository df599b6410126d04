"""Training of SASRec on a data set, with the item vectors that the settings name."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from numpy.typing import NDArray
from rich.console import Console
from torch import Tensor

from index.alphafuse import FusedVectors
from training.baselines.item_vectors import item_vectors
from training.baselines.loop import fit
from training.baselines.sasrec import SASRec, catalogue_cross_entropy
from training.baselines.sequences import Batch, epoch_batches, item_rows, read_cases
from training.baselines.settings import BaselineError, SASRecSettings
from training.baselines.trained import Trained, validation_score
from training.baselines.vector_file import load_vectors, save_vectors
from training.data.dataset import DataSet
from training.data.splits import Case, Split
from training.evaluation.ranking import draw_cases
from training.preparation import embed_items

LANGUAGE_FILE = "language_vectors.parquet"
VECTORS_FILE = "item_vectors.parquet"


def train_sasrec(
    settings: SASRecSettings,
    dataset: DataSet,
    split: Split,
    language: Path | None,
    out: Path,
    console: Console,
) -> Trained:
    """Cross-entropy of the next item over the full catalogue, by cosines: with h_t the state after event t,

        p(i | 1 .. t) = softmax_i( cos(h_t, e_i) / τ )

    so that how long the item vectors are, which differs between their sources, does not matter.
    """
    histories = item_rows(split.train)
    if not histories:
        raise BaselineError("no user has two events to train on")
    known = None if settings.items == "id" else _language(language, dataset, out, console)
    items = item_vectors(settings, len(dataset.catalogue), known)
    model = SASRec(
        items, settings.hidden, layers=settings.layers, heads=settings.heads, dropout=settings.dropout,
        max_events=settings.max_events,
    )  # fmt: skip

    def batches(epoch: int) -> list[Batch]:
        rng = np.random.default_rng([settings.seed, epoch])
        return epoch_batches(histories, settings.max_events, settings.batch_size, rng)

    def loss_of(batch: Batch) -> Tensor:
        vectors = model.items()
        states = model.states(vectors, batch.rows)[batch.targets >= 0]
        return catalogue_cross_entropy(
            F.normalize(states, dim=1) / settings.temperature,
            F.normalize(vectors, dim=1),
            batch.targets[batch.targets >= 0],
        )

    def score(cases: Sequence[Case]) -> NDArray[np.floating]:
        return score_cases(model, cases)

    chosen = draw_cases(split.validation, settings.validation_cases, seed=0)
    progress = fit(
        model, batches, loss_of, lambda: validation_score(score, chosen, settings.exclude_history),
        epochs=settings.epochs, patience=settings.patience, learning_rate=settings.learning_rate,
        weight_decay=settings.weight_decay, seed=settings.seed, out=out, console=console,
    )  # fmt: skip
    save_vectors(out / VECTORS_FILE, dataset.catalogue, items().detach().numpy())
    notes: dict[str, Any] = {}
    if isinstance(items, FusedVectors):
        notes = {"semantic": items.frozen.shape[1], "null": items.learned.shape[1]}
    return Trained(model, score, progress, notes)


@torch.inference_mode()
def score_cases(model: SASRec, cases: Sequence[Case]) -> NDArray[np.float32]:
    """Cosine of the state after each case's history with every item: float32 [cases, N]."""
    vectors = model.items()
    rows, last = read_cases(cases, model.max_events)
    states = model.states(vectors, rows)[torch.arange(len(cases)), last]
    scores: NDArray[np.float32] = (F.normalize(states, dim=1) @ F.normalize(vectors, dim=1).T).numpy()
    return scores


def _language(file: Path | None, dataset: DataSet, out: Path, console: Console) -> NDArray[np.float32]:
    """Given, or kept by this run from before, or made and kept."""
    if file is not None:
        return load_vectors(file, dataset.catalogue)
    kept = out / LANGUAGE_FILE
    if not kept.exists():
        save_vectors(kept, dataset.catalogue, embed_items(dataset.catalogue, console))
    return load_vectors(kept, dataset.catalogue)
