"""Item vectors that fuse meaning with behaviour. An AlphaFuse SASRec is trained on the training events; its items are

    e_i = (c f_i, z_i)   f_i: standardised language vector in its row space; z_i: learned (`alphafuse`)

A quantiser spends codes on the directions of largest variance, and the standardised part varies equally in all
directions, so it would be noise. The quantised vectors therefore keep the row space as the texts have it, and scale the
learned part:

    (m_i, b z_i),   m_i = (x_i − μ)ᵀ U_s,   b such that m varies `MEANING` times as much as b z, over all directions

There is no behaviour for an item that nobody chose in training, or that is added later. Its z_i is zero, as for the
cold items of the paper. Both kinds get their codes by the same rule: from the language vector x_i alone, of which m_i
is an affine map. The codebooks of a bundle contain that map, and take language vectors.

The training, a run of `gems baseline sasrec`, is kept by `trained_beside`, with the language vectors of the items in
`language.parquet` beside it.
"""

from __future__ import annotations

import hashlib
from pathlib import Path
from typing import Final

import numpy as np
from rich.console import Console

from index.identifiers.alphafuse import AlphaFuseError, SemanticSpace
from index.identifiers.codebooks import Layer
from training.baselines.item_vectors import semantic_space
from training.baselines.settings import SASRecSettings
from training.config import TrainConfig
from training.data.dataset import DataSet
from training.data.item_vectors import (
    ItemVectorError,
    ItemVectors,
    VectorOrigin,
    VectorSource,
    vector_source,
)
from training.data.splits import Split
from training.data.vectors import read_vectors, save_vectors
from training.prepare.behaviour import chosen_items
from training.prepare.trained_beside import kept_folder, train_beside

ALPHAFUSE: Final = "alphafuse"
LANGUAGE = "language.parquet"
# with less, items that are added later get codes far from those of similar items
MEANING = 2.0


def fused_source(
    config: TrainConfig, data: Path, dataset: DataSet, split: Split, beside: Path, console: Console
) -> VectorSource:
    """Return the source of fused vectors of the catalogue.

    data: folder of the data set; only `split.train` of the leave-one-out split is learned from.
    beside: folder next to which the training is kept. A training that was stopped is continued there.

    The language vectors are made here, so that everything is checked before anything is written.
    Raises the errors of `vector_source`, and `ItemVectorError` if the vectors cannot be fused.
    """
    language_source = vector_source(config, dataset.catalogue)
    settings = SASRecSettings(
        items=ALPHAFUSE,
        hidden=config.identifiers.fused_hidden,
        epochs=config.identifiers.fused_epochs,
        seed=config.seed,
        threads=config.threads,
    )
    more = [language_source.origin.encoder_sha256]
    if config.identifiers.vectors is not None:
        more.append(hashlib.sha256(config.identifiers.vectors.read_bytes()).hexdigest())
    folder = kept_folder("fused", beside, settings, dataset, *more)
    ids, kept = dataset.catalogue.item_ids, folder / LANGUAGE
    language = read_vectors(kept, ids) if kept.exists() else language_source.make(console).vectors
    try:
        space, null = semantic_space(settings, language)
        if null > space.dimensions - space.semantic:
            raise AlphaFuseError(
                f"language vectors of {space.dimensions} dimensions have no room for more than as many"
            )
    except AlphaFuseError as error:
        raise ItemVectorError(
            f"--identifiers.embeddings alphafuse with --identifiers.fused-hidden {settings.hidden}: {error}"
        ) from error
    later = _projection(space, null)
    chosen = chosen_items(split, "--identifiers.embeddings alphafuse")

    def make(console: Console) -> ItemVectors:
        folder.mkdir(parents=True, exist_ok=True)
        if not kept.exists():
            save_vectors(kept, ids, language)
        console.print(f"item vectors are fused with behaviour in {folder / settings.name}", soft_wrap=True)
        fused = train_beside(data, folder, settings, dataset, console, language=kept)
        learned = fused[chosen, space.semantic :]
        vectors = language @ later.weight + later.bias
        share = space.singular_values[: space.semantic].sum() / (MEANING * learned.var(0).sum())
        vectors[chosen, space.semantic :] = np.sqrt(share) * learned
        return ItemVectors(vectors, later)

    origin = VectorOrigin(ALPHAFUSE, language_source.origin.encoder, language_source.origin.encoder_sha256)
    return VectorSource(origin, make)


def _projection(space: SemanticSpace, null: int) -> Layer:
    """Return the map x ↦ ((x − μ)ᵀ U_s, 0) from language vectors, float32 [N, d], to fused ones without behaviour."""
    weight = np.pad(space.row_space, ((0, 0), (0, null)))
    return Layer(weight.astype(np.float32), (-space.mean @ weight).astype(np.float32))
