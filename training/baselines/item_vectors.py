"""Sources of SASRec's item vectors: learned vectors by item ID, or language vectors used in three ways."""

from __future__ import annotations

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn

from index.identifiers.alphafuse import AlphaFuseError, FusedVectors, SemanticSpace
from training.baselines.settings import BaselineError, ItemKind, SASRecSettings

START = 0.02  # initial standard deviation of learned vectors


class TableVectors(nn.Module):
    """One learned vector per item."""

    def __init__(self, start: Tensor) -> None:
        """Learn the table from `start`, float32 [N, D]."""
        super().__init__()
        self.table = nn.Parameter(start)

    def forward(self) -> Tensor:
        return self.table


class AdapterVectors(nn.Module):
    """Learned projection of frozen language vectors: W (x_i − μ) + b.

    Sources: MoRec (arXiv 2303.13835) and UniSRec (arXiv 2206.05941).
    """

    language: Tensor  # float32 [N, d]

    def __init__(self, vectors: NDArray[np.float32], width: int) -> None:
        super().__init__()
        self.register_buffer("language", torch.from_numpy(vectors - vectors.mean(0)))
        self.adapter = nn.Linear(vectors.shape[1], width)

    def forward(self) -> Tensor:
        adapted: Tensor = self.adapter(self.language)
        return adapted


class ScaledFusedVectors(FusedVectors):
    """AlphaFuse vectors with a scaled frozen part: c f instead of f.

    Every direction of the frozen part has the same variance, c². The scale c sets how much meaning counts before
    behaviour is learned.
    """

    def __init__(self, space: SemanticSpace, vectors: NDArray[np.floating], null: int, scale: float) -> None:
        super().__init__(space, vectors, null, std=START)
        self.frozen *= scale


class UnitTableVectors(TableVectors):
    """One learned vector per item; over the catalogue, every dimension has mean 0 and variance 1."""

    def forward(self) -> Tensor:
        return standardised(self.table)


class UnitFusedVectors(FusedVectors):
    """AlphaFuse vectors whose learned part has mean 0 and variance 1 in every dimension, as the frozen one has."""

    def forward(self) -> Tensor:
        return torch.cat([self.frozen, standardised(self.learned)], dim=1)


def standardised(vectors: Tensor) -> Tensor:
    """Return the vectors with mean 0 and variance 1 in every dimension. vectors: float [N, D]."""
    return (vectors - vectors.mean(0)) / vectors.std(0, correction=0)


def item_vectors(
    settings: SASRecSettings, kind: ItemKind, count: int, language: NDArray[np.float32] | None
) -> nn.Module:
    """Return a module whose `forward()` gives the item vectors, float32 [count, hidden].

    Initial values are drawn from torch's global generator.

    kind: source of the vectors.
    count: number of items.
    language: language vectors of the items, float32 [count, d]; every source except 'id' needs them.
    Raises `BaselineError` if the language vectors do not suit the settings.
    """
    if kind == "id":
        return TableVectors(torch.randn(count, settings.hidden) * START)
    assert language is not None
    try:
        if kind == "adapter":
            return AdapterVectors(language, settings.hidden)
        if kind == "language-init":
            return TableVectors(_leading_components(language, settings.hidden))
        space, null = semantic_space(settings, language)
        return ScaledFusedVectors(space, language, null, settings.semantic_scale)
    except AlphaFuseError as error:
        raise BaselineError(f"--items {kind}: {error}") from error


def semantic_space(settings: SASRecSettings, language: NDArray[np.float32]) -> tuple[SemanticSpace, int]:
    """Return the semantic space that the settings choose, and d_n = hidden − d_s, the number of learned dimensions.

    language: float32 [N, d].
    Raises `AlphaFuseError` if no learned dimension is left.
    """
    if settings.threshold is None:
        null = settings.null or settings.hidden // 2
        return SemanticSpace.of(language, semantic=settings.hidden - null), null
    space = SemanticSpace.of(language, threshold=settings.threshold)
    if space.semantic >= settings.hidden:
        raise AlphaFuseError(
            f"a threshold of {settings.threshold} makes a row space of {space.semantic} dimensions, which leaves "
            f"nothing of --hidden {settings.hidden} to learn; raise either"
        )
    return space, settings.hidden - space.semantic


def full_space(language: NDArray[np.float32], null: int | None, threshold: float | None) -> SemanticSpace:
    """Return the semantic space whose null space is learned whole: `null` directions (default: half), or by threshold.

    language: float32 [N, d].
    Raises `AlphaFuseError`.
    """
    if threshold is not None:
        return SemanticSpace.of(language, threshold=threshold)
    width = language.shape[1]
    return SemanticSpace.of(language, semantic=width - (width // 2 if null is None else null))


def _leading_components(language: NDArray[np.float32], width: int) -> Tensor:
    """Return (x − μ)ᵀ U_D, scaled to the initial standard deviation of learned vectors: float32 [N, D]."""
    space = SemanticSpace.of(language, semantic=width)
    components = (language - space.mean) @ space.row_space
    return torch.from_numpy(components * (START / components.std())).float()
