"""DreamRec on a data set: a diffusion model makes the vector of the next item, and the nearest items are the answer.

Source: Yang et al., *Generate What You Prefer: Reshaping Sequential Recommendation via Guided Diffusion*, arXiv
2310.20453. The history is read by the transformer of SASRec, whose state after event t guides the denoiser
(`networks/diffusion.py`). Its item vectors are learned by item ID, or they are those of AlphaFuse (arXiv 2504.19218),
which uses this model at the full width of the language vectors: no direction of the null space is cut off, and what is
learned starts as noise of unit variance, like the standardised part.
"""

from __future__ import annotations

import zlib
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import torch
import torch.nn.functional as F
from numpy.typing import NDArray
from rich.console import Console
from torch import Tensor, nn

from index.identifiers.alphafuse import AlphaFuseError, FusedVectors
from index.sequence.events import Task
from training.baselines.baseline import Baseline
from training.baselines.item_vectors import UnitFusedVectors, UnitTableVectors, full_space
from training.baselines.language import given_or_made
from training.baselines.networks.diffusion import Denoiser
from training.baselines.networks.sasrec import SASRec
from training.baselines.sequences import Batch, epoch_batches, item_rows, read_cases
from training.baselines.settings import BaselineError, DreamRecSettings
from training.data.dataset import DataSet
from training.data.splits import Case, Split


class DreamRec(nn.Module):
    """A transformer over histories, and the denoiser that its states guide."""

    def __init__(self, settings: DreamRecSettings, items: nn.Module, width: int) -> None:
        """Draw the first weights. items: module whose `forward()` gives the item vectors, [N, width]."""
        super().__init__()
        self._settings = settings
        self.history = SASRec(
            items, width, layers=settings.layers, heads=settings.heads, dropout=settings.dropout,
            max_events=settings.max_events, start=1.0,
        )  # fmt: skip
        self.denoiser = Denoiser(width, settings.levels)

    def loss(self, batch: Batch) -> Tensor:
        """Return the denoiser's mean squared error at the targets of a batch, a scalar."""
        vectors, inside = self.history.items(), batch.targets >= 0
        states = self.history.states(vectors, batch.rows)[inside]
        wanted = F.embedding(batch.targets[inside], vectors)
        return self.denoiser.loss(wanted, states, self._settings.unguided)

    @torch.inference_mode()
    def answers(self, cases: Sequence[Case]) -> Tensor:
        """Return the vectors that are made for the next items of cases: float32 [cases, D]."""
        settings, vectors = self._settings, self.history.items()
        rows, last = read_cases(cases, settings.max_events)
        states = self.history.states(vectors, rows)[torch.arange(len(cases)), last]
        noise = case_noise(cases, vectors.shape[1], settings.seed)
        return self.denoiser.generate(states, noise, settings.steps, settings.guidance)

    @torch.inference_mode()
    def scores(self, cases: Sequence[Case]) -> NDArray[np.float32]:
        """Return the cosine of each case's answer with every item: float32 [cases, N]."""
        vectors, answers = self.history.items(), self.answers(cases)
        cosines: NDArray[np.float32] = (F.normalize(answers, dim=1) @ F.normalize(vectors, dim=1).T).numpy()
        return cosines


def case_noise(cases: Sequence[Case], width: int, seed: int) -> Tensor:
    """Return the noise that each case starts from, float32 [cases, width]: its own, whatever cases are beside it."""
    rows = [
        np.random.default_rng([seed, zlib.crc32(case.user_id.encode())]).standard_normal(width)
        for case in cases
    ]
    return torch.from_numpy(np.stack(rows)).float()


def dreamrec(
    settings: DreamRecSettings, dataset: DataSet, split: Split, language: Path | None, console: Console
) -> Baseline:
    """Return DreamRec as a baseline.

    language: file of the items' language vectors; None: they are made if they are needed.
    Raises `BaselineError` if no user has two training events, or the language vectors do not suit the settings.
    """
    histories = item_rows(split.train)
    if not histories:
        raise BaselineError("no user has two events to train on")
    known, made = None, None
    if settings.items == "alphafuse":
        known, made = given_or_made(language, dataset.catalogue, console)
    items = _items(settings, len(dataset.catalogue), known)
    width = items().shape[1]
    if width % settings.heads:
        raise BaselineError(
            f"language vectors of {width} dimensions do not divide among {settings.heads} heads; give other --heads"
        )
    model = DreamRec(settings, items, width)

    def batches(epoch: int) -> list[Batch]:
        rng = np.random.default_rng([settings.seed, epoch])
        return epoch_batches(histories, settings.max_events, settings.batch_size, rng)

    split_into = (
        {"semantic": items.frozen.shape[1], "null": items.learned.shape[1]}
        if isinstance(items, FusedVectors)
        else {}
    )
    return Baseline(
        model, settings.epochs, batches, model.loss, {Task.RECOMMENDATION: model.scores},
        vectors=lambda: items().detach().numpy(), language=made, notes=lambda: split_into,
    )  # fmt: skip


def _items(settings: DreamRecSettings, count: int, language: NDArray[np.float32] | None) -> nn.Module:
    """Return the item vectors, of unit variance as the noise is, with a Gaussian start.

    The denoiser's loss reaches them; without a fixed variance it would fall by drawing all of them together.
    """
    if language is None:
        return UnitTableVectors(torch.randn(count, settings.hidden))
    try:
        space = full_space(language, settings.null, settings.threshold)
        return UnitFusedVectors(space, language, space.dimensions - space.semantic, std=1.0)
    except AlphaFuseError as error:
        raise BaselineError(f"--items alphafuse: {error}") from error
