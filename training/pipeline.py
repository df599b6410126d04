"""`gems train`: data set → item vectors → identifiers → backbone → training → bundle.

What can be refused is refused first: nothing is written before data, settings and backbone are known
to fit. The run folder then records everything (see docs/training.md).
"""

from __future__ import annotations

import os
from dataclasses import asdict
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import torch
from rich.console import Console

from index.bundle import BundleInfo, publish
from index.trie import Trie
from index.vocabulary import MARKERS
from server.engine.torch_engine import TorchEngine
from training import assets
from training.backbones import Backbone, BackboneError, load_backbone
from training.batches import BatchSource
from training.config import TrainConfig
from training.data.dataset import DataSet
from training.data.schema import package_version
from training.data.splits import leave_one_out
from training.methods import make_method
from training.preparation import Prepared, is_prepared, open_prepared, prepare
from training.run_folder import RunError, check_run, record_run
from training.trainer import Trainer
from training.validation import Validator


def train(data: Path, out: Path, config: TrainConfig, *, resume: bool = False, console: Console) -> Path:
    """Train and publish; returns the bundle's folder. Raises `UserError` with what to mend."""
    dataset = DataSet.load(data)
    split = leave_one_out(dataset)
    if not split.validation:
        raise RunError(
            "nobody has three interactions, so there is nothing to validate on; more data is needed"
        )
    continued = check_run(out, config, dataset, resume)
    bundle = out / "bundle"
    if bundle.exists():
        console.print(f"{bundle} is published already; nothing left to do")
        return bundle
    torch.set_num_threads(config.threads or os.cpu_count() or 1)
    if not is_prepared(out / "prepared"):
        backbone = _checked_backbone(config, dataset)
        assets.fetch("minilm")
        if not continued:
            record_run(out, config, dataset, data)
        prepare(out / "prepared", dataset.catalogue, backbone, config, console)
    prepared = open_prepared(out / "prepared", config.scheme)
    encoder = prepared.encoder(config)
    engine = TorchEngine(
        prepared.model,
        Trie.build(prepared.identifiers.codes),
        prepared.vocabulary,
        normalisation=config.normalisation,
    )  # refuses what could not be served before it is trained
    batches = BatchSource(
        encoder,
        split.train,
        [item.title for item in dataset.catalogue],
        batch_size=config.batch_size,
        part_tokens=config.part_tokens,
        title_queries=config.title_queries,
        query_dropout=config.query_dropout,
        seed=config.seed,
    )
    trainer = Trainer(
        out,
        config,
        prepared.model,
        prepared.vocabulary,
        make_method(prepared.model, config),
        batches,
        Validator(prepared.model, encoder, engine, split.validation, config),
    )
    torch.manual_seed(config.seed)  # the same dropout whether the backbone was just made or read back
    if continued and trainer.resume():
        console.print(f"resumed at step {trainer.progress.step} of {trainer.total_steps}")
    weights = sum(p.numel() for p in prepared.model.parameters())
    console.print(
        f"{len(split.train)} histories, {len(dataset.catalogue)} items, identifiers of "
        f"{prepared.vocabulary.levels} codes {prepared.vocabulary.codebook_sizes}; {weights / 1e6:.1f} M weights"
    )
    validation = trainer.train()
    record = {
        "method": config.method,
        "backbone": config.backbone,
        "steps": trainer.progress.step,
        "best_step": trainer.progress.best_step,
        "seconds": round(trainer.progress.seconds, 1),
        "validation": validation,
    }
    publish(
        bundle,
        model=prepared.model,
        tokenizer=prepared.tokenizer,
        catalogue=dataset.catalogue,
        identifiers=prepared.identifiers,
        info=_bundle_info(config, prepared, dataset, record),
    )
    return bundle


def _checked_backbone(config: TrainConfig, dataset: DataSet) -> Backbone:
    torch.manual_seed(config.seed)
    backbone = load_backbone(config, dataset.catalogue.texts())
    taken = {f"<|{name}|>" for name in MARKERS} & set(backbone.tokenizer.get_vocab())
    if taken:
        raise BackboneError(
            f"backbone {config.backbone!r} already knows {min(taken)}; use one that is no bundle"
        )
    positions = getattr(backbone.model.config, "max_position_embeddings", None)
    if positions is not None and config.max_tokens > positions:
        raise BackboneError(
            f"--max-tokens {config.max_tokens} exceeds the backbone's context of {positions} positions"
        )
    return backbone


def _bundle_info(
    config: TrainConfig, prepared: Prepared, dataset: DataSet, record: dict[str, Any]
) -> BundleInfo:
    created = datetime.now(UTC)
    return BundleInfo(
        bundle_id=f"{dataset.info.name}-{config.method}-{created:%Y%m%dT%H%M%SZ}",
        scheme=config.scheme,
        codebook_sizes=prepared.vocabulary.codebook_sizes,
        first_added_token=prepared.vocabulary.first_added,
        normalisation=config.normalisation,
        max_tokens=config.max_tokens,
        max_events=config.max_events,
        max_query_tokens=config.max_query_tokens,
        created=created.isoformat(timespec="seconds"),
        code_version=package_version(),
        data=asdict(dataset.info),
        training=record,
    )
