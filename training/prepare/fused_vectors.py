"""Item vectors that fuse meaning with behaviour. An AlphaFuse SASRec is trained on the training events; its items are

    e_i = (c f_i, z_i)   f_i: standardised language vector in its row space; z_i: learned (`alphafuse`)

A quantiser spends codes on the directions of largest variance, and the standardised part varies equally in all
directions, so it would be noise. The quantised vectors therefore keep the row space as the texts have it, and scale the
learned part:

    (m_i, b z_i),   m_i = (x_i − μ)ᵀ U_s,   b such that m varies `MEANING` times as much as b z, over all directions

There is no behaviour for an item that nobody chose in training, or that is added later. Its z_i is zero, as for the
cold items of the paper. Both kinds get their codes by the same rule: from the language vector x_i alone, of which m_i
is an affine map. The codebooks of a bundle contain that map, and take language vectors.

The training is kept next to the preparations of the run, under a hash of everything that it depends on:

    fused-<hash>/language.parquet    language vectors of the items
    fused-<hash>/sasrec/             a run of `gems baseline sasrec`
"""

from __future__ import annotations

import hashlib
import json
import shutil
from pathlib import Path
from typing import Final

import numpy as np
import torch
from numpy.typing import NDArray
from rich.console import Console

from index.identifiers.alphafuse import AlphaFuseError, SemanticSpace
from index.identifiers.codebooks import Layer
from training.baselines.item_vectors import semantic_space
from training.baselines.run import VECTORS_FILE, run_baseline
from training.baselines.sequences import item_rows
from training.baselines.settings import SASRecSettings
from training.config import TrainConfig
from training.data.dataset import DataSet
from training.data.item_vectors import ItemVectorError, VectorOrigin, VectorSource, vector_source
from training.data.splits import Split
from training.data.vectors import read_vectors, save_vectors
from training.run.locks import claim
from training.run.run_folder import fingerprint

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
    folder = beside.with_name(f"fused-{_key(config, settings, dataset, language_source.origin)}")
    ids, kept = dataset.catalogue.item_ids, folder / LANGUAGE
    language = read_vectors(kept, ids) if kept.exists() else language_source.make(console)
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
    histories = item_rows(split.train)
    if not histories:
        raise ItemVectorError(
            "--identifiers.embeddings alphafuse: nobody has two training events (four, with those that are held out), "
            "so there is no behaviour to learn from; use 'text'"
        )
    chosen = np.unique(np.concatenate(histories))

    def make(console: Console) -> NDArray[np.float32]:
        folder.mkdir(parents=True, exist_ok=True)
        with claim(folder / ".lock", wait=True):  # runs of a sweep may share it
            if not kept.exists():
                save_vectors(kept, ids, language)
            console.print(f"item vectors are fused with behaviour in {folder / 'sasrec'}", soft_wrap=True)
            _train(data, folder / "sasrec", settings, kept, console)
        learned = read_vectors(folder / "sasrec" / VECTORS_FILE, ids)[chosen, space.semantic :]
        vectors = language @ later.weight + later.bias
        share = space.singular_values[: space.semantic].sum() / (MEANING * learned.var(0).sum())
        vectors[chosen, space.semantic :] = np.sqrt(share) * learned
        return vectors

    origin = VectorOrigin(ALPHAFUSE, language_source.origin.encoder, language_source.origin.encoder_sha256)
    return VectorSource(origin, make, later)


def _key(config: TrainConfig, settings: SASRecSettings, dataset: DataSet, origin: VectorOrigin) -> str:
    """Return a hash of everything that shapes the fused vectors."""
    texts = dataset.catalogue.texts()
    shape = [settings.model_dump(mode="json"), origin.encoder_sha256, fingerprint(dataset), texts]
    digest = hashlib.sha256(json.dumps(shape).encode())
    if config.identifiers.vectors is not None:
        digest.update(config.identifiers.vectors.read_bytes())
    return digest.hexdigest()[:16]


def _train(data: Path, out: Path, settings: SASRecSettings, language: Path, console: Console) -> None:
    """Run `run_baseline`, but keep threads and random state of this process."""
    if not (out / "environment.json").exists():  # killed before it was recorded as a run
        shutil.rmtree(out, ignore_errors=True)
    threads = torch.get_num_threads()
    with torch.random.fork_rng(devices=[]):
        run_baseline(data, out, settings, language=language, resume=True, console=console)
    torch.set_num_threads(threads)


def _projection(space: SemanticSpace, null: int) -> Layer:
    """Return the map x ↦ ((x − μ)ᵀ U_s, 0) from language vectors, float32 [N, d], to fused ones without behaviour."""
    weight = np.pad(space.row_space, ((0, 0), (0, null)))
    return Layer(weight.astype(np.float32), (-space.mean @ weight).astype(np.float32))
