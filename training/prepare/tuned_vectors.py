"""Item vectors of a text encoder that was tuned on both tasks, as Sem-BSR makes its identifiers of (arXiv 2508.10478).

The encoder learns from pairs of query and chosen item, and from pairs of items that people chose one after the other
(`gems baseline dense --pairs both`). Items that are added later are embedded by the encoder as it was before. The
codebooks of a bundle contain the ridge regression of the tuned vectors on its own ones.
"""

from __future__ import annotations

from pathlib import Path
from typing import Final

import numpy as np
from numpy.typing import NDArray
from rich.console import Console

from index.embeddings import TextEncoder, check_texts, encoder_hash
from index.identifiers.codebooks import Layer
from index.identifiers.ridge import ridge
from training.baselines.dense import Pairs
from training.baselines.settings import BaselineError, DenseSettings
from training.config import TrainConfig
from training.data.dataset import DataSet
from training.data.embedding import embed_items
from training.data.item_vectors import (
    MINILM,
    ItemVectorError,
    ItemVectors,
    VectorOrigin,
    VectorSource,
    encoder_folder,
)
from training.data.splits import Split
from training.prepare.trained_beside import kept_folder, train_beside

BI_ENCODER: Final = "bi-encoder"
ROUNDS = 3
RIDGE = 1e-3


def tuned_source(
    config: TrainConfig, data: Path, dataset: DataSet, split: Split, beside: Path
) -> VectorSource:
    """Return the source of tuned vectors of the catalogue.

    data: folder of the data set; only `split.train` of the leave-one-out split is learned from.
    beside: folder next to which the training is kept. A training that was stopped is continued there.
    Raises `ItemVectorError` if there are no searches to learn from, if the encoder is another than MiniLM, or if
    vectors are given, and what `vector_source` raises.
    """
    setting = "--identifiers.embeddings bi-encoder"
    if config.identifiers.vectors is not None:
        raise ItemVectorError(f"{setting} tunes an encoder of texts: leave out --identifiers.vectors")
    if config.identifiers.encoder != MINILM:
        raise ItemVectorError(f"{setting} tunes {MINILM!r}: leave out --identifiers.encoder")
    check_texts(dataset.catalogue)
    settings = DenseSettings(
        pairs="both",
        rounds=ROUNDS,
        steps=-(-config.identifiers.tuned_steps // ROUNDS),
        seed=config.seed,
        threads=config.threads,
    )
    try:
        Pairs.of(split, dataset.catalogue.texts(), settings.pairs)
    except BaselineError as error:
        raise ItemVectorError(
            f"{setting}: {error}; import a log with searches, or leave --identifiers.embeddings at 'text'"
        ) from error
    encoder = encoder_folder(MINILM)
    origin = VectorOrigin(BI_ENCODER, MINILM, encoder_hash(encoder))
    folder = kept_folder("tuned", beside, settings, dataset, origin.encoder_sha256)

    def make(console: Console) -> ItemVectors:
        console.print(f"the text encoder is tuned in {folder / settings.name}", soft_wrap=True)
        tuned = train_beside(data, folder, settings, dataset, console)
        untuned = embed_items(TextEncoder(encoder), dataset.catalogue, console)
        return ItemVectors(tuned, affine_map(untuned, tuned))

    return VectorSource(origin, make)


def affine_map(x: NDArray[np.float32], y: NDArray[np.float32]) -> Layer:
    """Return the ridge regression of y on x. x: float32 [N, d]. y: float32 [N, k]."""
    mean, centre, weight = ridge(x, y, RIDGE)
    return Layer(weight.astype(np.float32), (centre - mean @ weight).astype(np.float32))
