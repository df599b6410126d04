"""Bundles of a pretrained backbone that was not trained on items: random embeddings of codes, random identifiers."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import torch

from index.bundle.bundle import BundleInfo, publish
from index.catalogue import Catalogue, Item
from index.identifiers.identifiers import Identifiers
from index.pool.pool_index import PoolIndex
from training.config import TrainConfig
from training.model.backbones import load_backbone
from training.model.extension import extend_backbone


def random_identifiers(items: int) -> Identifiers:
    """Return distinct random identifiers of four codes."""
    rng = np.random.default_rng(0)
    sizes = (256, 256, 256, 16)
    table = np.stack([rng.integers(0, size, 2 * items) for size in sizes], axis=1)
    codes = rng.permutation(np.unique(table, axis=0))[:items].astype(np.int32)
    return Identifiers("semantic", codes, sizes)


def publish_untrained(
    path: Path,
    *,
    items: int,
    backbone: str = "smollm2-135m",
    layers: int | None = None,
    normalisation: str,
    identifiers: Identifiers | None = None,
    catalogue: Catalogue | None = None,
    pool: PoolIndex | None = None,
) -> Path:
    """Publish an untrained bundle at `path`, and return the path.

    items: number of items.
    layers: first layers of the backbone that are kept; None: all.
    normalisation: "level" or "vocabulary".
    identifiers: identifiers of the items; None: random ones.
    catalogue: the items; None: numbered ones.
    pool: index of the pool, if the server is to rank one.
    """
    identifiers = identifiers or random_identifiers(items)
    catalogue = catalogue or Catalogue(Item(f"item-{k}", f"item {k}") for k in range(items))
    loaded = load_backbone(TrainConfig.combined({"backbone": {"name": backbone, "layers": layers}}), [])
    vocabulary = extend_backbone(
        loaded,
        identifiers,
        [item.title for item in catalogue],
        np.ones((items, 1), np.float32),
    )
    rows = loaded.model.get_input_embeddings().weight
    torch.manual_seed(0)
    with torch.no_grad():  # random embeddings avoid ties that rounding would decide
        rows[vocabulary.first_added :].normal_(0, float(rows[: vocabulary.first_added].std()))
    info = BundleInfo(
        bundle_id=f"untrained-{Path(backbone).name}",
        scheme="semantic",
        codebook_sizes=identifiers.codebook_sizes,
        first_added_token=vocabulary.first_added,
        normalisation=normalisation,
        max_tokens=2048,
        max_events=50,
        max_query_tokens=32,
        created="2026-01-01T00:00:00+00:00",
        code_version="bench",
    )
    publish(
        path,
        model=loaded.model,
        tokenizer=loaded.tokenizer,
        catalogue=catalogue,
        identifiers=identifiers,
        info=info,
        popularity=None if pool is None else pool.counts,
        pool=pool,
    )
    return path
