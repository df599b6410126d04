"""`gems train`: a data set is trained on (`training.fit`), and the model is published as a bundle."""

from __future__ import annotations

from dataclasses import asdict
from datetime import UTC, datetime
from pathlib import Path

from rich.console import Console

from index.bundle.bundle import BundleInfo, publish
from index.pool.pool_index import PoolIndex
from training.config import TrainConfig
from training.data.item_vectors import VectorOrigin
from training.data.schema import package_version
from training.dense.fit import dense_index
from training.fit import Trained, fit
from training.fusion.fitted_pool import fitted_pool
from training.prepare.renewal import Renewal
from training.run.device import chosen_device
from training.run.parallel import Parallel


def train(
    data: Path,
    out: Path,
    config: TrainConfig,
    *,
    resume: bool = False,
    renewal: Renewal | None = None,
    console: Console,
) -> Path | None:
    """Train and publish. Return the folder of the bundle, or None for a method that leaves no plain weights.

    data: folder of a data set.
    out: the run folder.
    resume: continue the run in `out`.
    renewal: the bundle to go on from; None to train from nothing.
    Under `torchrun` every process calls it, and the first one writes.
    Raises `UserError` that says what to change.
    """
    parallel = Parallel.start(chosen_device(config.device))
    bundle = out / "bundle"
    trained = fit(data, out, config, resume=resume, renewal=renewal, console=console, parallel=parallel)
    if trained is None:
        console.print(f"{bundle} is published already; nothing left to do")
        return bundle
    if not trained.method.exportable:
        console.print(f"a model trained with {config.method!r} cannot be exported; its figures are in {out}")
        return None
    if not config.backbone.shard:  # the whole model beside a sharded one has merged weights
        trained.method.merge()
    if parallel.main:
        catalogue, prepared = trained.dataset.catalogue, trained.prepared
        vectors = prepared.later_vectors()
        dense = None
        if vectors is not None:
            dense = dense_index(prepared.model, trained.batches, vectors, seed=config.seed, console=console)
        pool = fitted_pool(
            trained.engine, prepared.encoder(config), catalogue, trained.split, config.search_attributes,
            dense=dense, trained=len(catalogue), fresh_share=config.fresh_share, seed=config.seed, console=console,
        )  # fmt: skip
        publish(
            bundle,
            model=prepared.model,
            tokenizer=prepared.tokenizer,
            catalogue=catalogue,
            identifiers=prepared.identifiers,
            info=_bundle_info(config, trained, pool),
            popularity=pool.counts,
            pool=pool,
            removed=trained.removed,
        )
    parallel.wait()
    return bundle


def _bundle_info(config: TrainConfig, trained: Trained, pool: PoolIndex) -> BundleInfo:
    created = datetime.now(UTC)
    dataset, vocabulary = trained.dataset, trained.prepared.vocabulary
    needs_vectors = trained.prepared.identifiers.codebooks is not None or pool.dense is not None
    origin = trained.prepared.origin if needs_vectors else VectorOrigin("")
    return BundleInfo(
        bundle_id=f"{dataset.info.name}-{config.method}-{created:%Y%m%dT%H%M%SZ}",
        scheme=trained.prepared.identifiers.scheme,
        codebook_sizes=vocabulary.codebook_sizes,
        first_added_token=vocabulary.first_added,
        normalisation=config.identifiers.normalisation,
        max_tokens=config.sequence.max_tokens,
        max_events=config.sequence.max_events,
        max_query_tokens=config.sequence.max_query_tokens,
        created=created.isoformat(timespec="seconds"),
        code_version=package_version(),
        item_embeddings=origin.embeddings,
        item_encoder=origin.encoder,
        item_encoder_sha256=origin.encoder_sha256,
        data=asdict(dataset.info),
        training=trained.record,
    )
