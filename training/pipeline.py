"""`gems train`: data set → item vectors → identifiers → backbone → training → bundle.

Errors come first: nothing is written before data, settings and backbone are known to fit. The run folder then
records everything (see docs/training.md).
"""

from __future__ import annotations

import os
from collections.abc import Callable
from contextlib import nullcontext
from dataclasses import asdict, dataclass
from datetime import UTC, datetime
from functools import partial
from pathlib import Path
from typing import Any, cast

import numpy as np
import torch
from rich.console import Console
from torch import nn
from transformers import PreTrainedModel

from gems import KnowledgeBasis, find_linears
from index.bundle.bundle import BundleInfo, publish
from index.pool.lexical import check_attributes
from index.sequence.vocabulary import MARKERS
from index.trie.trie import Trie
from server.engine.torch_backend.engine import TorchEngine
from training.config import TrainConfig
from training.data import assets
from training.data.dataset import DataSet
from training.data.item_vectors import VectorOrigin, VectorSource, vector_source
from training.data.schema import package_version
from training.data.splits import Split, leave_one_out
from training.fusion.fitted_pool import fitted_pool
from training.loop.batches import BatchSource
from training.loop.pairs import Pairs
from training.loop.probe import ConflictProbe
from training.loop.trainer import Trainer
from training.loop.validation import Validator
from training.loop.word_queries import WordQueries
from training.methods.method import Method
from training.methods.registry import check_method, make_method
from training.model.backbones import Backbone, BackboneError, load_backbone
from training.prepare.fused_vectors import ALPHAFUSE, fused_source
from training.prepare.knowledge_basis import collect, knowledge_path, uses_knowledge
from training.prepare.preparation import Prepared, is_prepared, open_prepared, prepare
from training.run.locks import claim
from training.run.parallel import Parallel
from training.run.run_folder import RunError, check_run, record_run


@dataclass(frozen=True)
class Trained:
    """A finished training in memory.

    record: facts about the training for the manifest of the bundle.
    """

    dataset: DataSet
    split: Split
    prepared: Prepared
    engine: TorchEngine
    method: Method
    record: dict[str, Any]


def train(
    data: Path, out: Path, config: TrainConfig, *, resume: bool = False, console: Console
) -> Path | None:
    """Train and publish. Return the folder of the bundle, or None for a method that leaves no plain weights.

    data: folder of a data set.
    out: the run folder.
    resume: continue the run in `out`.
    Under `torchrun` every process calls it, and the first one writes.
    Raises `UserError` that says what to change.
    """
    parallel = Parallel.start()
    bundle = out / "bundle"
    trained = fit(data, out, config, resume=resume, console=console, parallel=parallel)
    if trained is None:
        console.print(f"{bundle} is published already; nothing left to do")
        return bundle
    if not trained.method.exportable:
        console.print(f"a model trained with {config.method!r} cannot be exported; its figures are in {out}")
        return None
    trained.method.merge()
    if parallel.main:
        catalogue = trained.dataset.catalogue
        pool = fitted_pool(
            trained.engine, trained.prepared.encoder(config), catalogue, trained.split, config.search_attributes,
            trained=len(catalogue), seed=config.seed, console=console,
        )  # fmt: skip
        publish(
            bundle,
            model=trained.prepared.model,
            tokenizer=trained.prepared.tokenizer,
            catalogue=catalogue,
            identifiers=trained.prepared.identifiers,
            info=_bundle_info(config, trained),
            popularity=pool.counts,
            pool=pool,
        )
    parallel.wait()
    return bundle


def fit(
    data: Path,
    out: Path,
    config: TrainConfig,
    *,
    resume: bool = False,
    console: Console,
    parallel: Parallel | None = None,
    preparations: Path | None = None,
) -> Trained | None:
    """Prepare and train, without publishing. Return None if a bundle is published already.

    parallel: the processes that train together.
    preparations: folder of identifiers and extended backbone, if not in `out`; runs that agree in
        `training.prepare.preparation.SHAPED_BY` may share it.
    """
    parallel = parallel or Parallel()
    if not parallel.main:
        console = Console(quiet=True)
    dataset = DataSet.load(data)
    split = leave_one_out(dataset)
    if not split.validation:
        raise RunError(
            "nobody has three interactions, so there is nothing to validate on; more data is needed"
        )
    check_attributes(dataset.catalogue, config.search_attributes)
    continued = parallel.agree(check_run(out, config, dataset, resume) if parallel.main else False)
    if (out / "bundle").exists():
        return None
    torch.set_num_threads(config.threads or max(1, (os.cpu_count() or 1) // parallel.size))
    folder = preparations or out / "prepared"
    if parallel.main:
        lock = claim(folder.with_suffix(".lock"), wait=True) if preparations else nullcontext()
        with lock:
            _prepare(
                folder,
                config,
                dataset,
                partial(_source, config, data, dataset, split, folder, console),
                console,
                None if continued else partial(record_run, out, config, dataset, data, config.threads),
            )
    parallel.wait()
    prepared = open_prepared(folder, config.identifiers.scheme)
    knowledge = KnowledgeBasis.load(knowledge_path(folder, config)) if uses_knowledge(config) else None
    encoder = prepared.encoder(config)
    # Raises an error before the training if the model could not be served.
    engine = TorchEngine(
        prepared.model,
        Trie.build(prepared.identifiers.codes),
        prepared.vocabulary,
        normalisation=config.identifiers.normalisation,
    )
    pairs = Pairs.of(prepared.model, encoder, config.sequence.targets)
    batches = BatchSource(
        encoder,
        split.train,
        [item.title for item in dataset.catalogue],
        batch_size=config.optimiser.batch_size,
        part_tokens=config.optimiser.part_tokens,
        title_queries=config.sequence.title_queries,
        query_dropout=config.sequence.query_dropout,
        word_queries=WordQueries(dataset.catalogue, config.sequence.word_queries),
        seed=config.seed,
        min_parts=parallel.size,
        pairs=pairs,
    )
    linears = find_linears(prepared.model)
    validator = Validator(prepared.model, encoder, engine, split.validation, config, pairs)
    torch.manual_seed(config.seed)  # adapters start with the same weights in new and resumed runs
    method = make_method(prepared.model, config, prepared.vocabulary.first_added, knowledge, parallel)
    weights = {name: cast(nn.Parameter, linear.weight) for name, linear in linears.items()}
    probe = (
        ConflictProbe(prepared.model, encoder, validator.cases, weights, config, pairs)
        if config.validation.conflict_cases
        else None
    )
    trainer = Trainer(
        out,
        config,
        prepared.model,
        prepared.vocabulary,
        method,
        batches,
        validator,
        probe,
        parallel,
    )
    if continued and trainer.resume():
        console.print(f"resumed at step {trainer.progress.step} of {trainer.total_steps}")
    size = sum(p.numel() for p in prepared.model.parameters())
    console.print(
        f"{len(split.train)} histories, {len(dataset.catalogue)} items, identifiers of "
        f"{prepared.vocabulary.levels} codes {prepared.vocabulary.codebook_sizes}; {size / 1e6:.1f} M weights; "
        f"method {config.method}"
    )
    validation = trainer.train()
    record = {
        "method": config.method,
        "backbone": config.backbone.name,
        "steps": trainer.progress.step,
        "best_step": trainer.progress.best_step,
        "seconds": round(trainer.progress.seconds, 1),
        "validation": validation,
    }
    conflict = probe() if probe is not None and parallel.main else {}
    if conflict:
        # conflict of the published model
        record["conflict"] = round(float(np.mean(list(conflict.values()))), 4)
    return Trained(dataset, split, prepared, engine, method, record)


def _source(
    config: TrainConfig, data: Path, dataset: DataSet, split: Split, folder: Path, console: Console
) -> VectorSource:
    if config.identifiers.embeddings == ALPHAFUSE:
        return fused_source(config, data, dataset, split, folder, console)
    return vector_source(config, dataset.catalogue)


def _prepare(
    folder: Path,
    config: TrainConfig,
    dataset: DataSet,
    make_source: Callable[[], VectorSource],
    console: Console,
    record: Callable[[], None] | None,
) -> None:
    """Fill `folder` with the missing preparations.

    record: makes the run folder; called when no error of the user is possible any more. None for a resumed run.
    """
    backbone = source = None
    if not is_prepared(folder):
        backbone = _checked_backbone(config, dataset)
        source = make_source()
    elif record is not None:  # a new run on old preparations
        _check_method(open_prepared(folder, config.identifiers.scheme).model, config)
    if record is not None:
        record()
    if backbone is not None and source is not None:
        prepare(folder, dataset.catalogue, backbone, source, config, console)
    if (
        uses_knowledge(config)
        and config.knowledge.basis is None
        and not knowledge_path(folder, config).exists()
    ):
        collect(folder, open_prepared(folder, config.identifiers.scheme), config, console)


def _checked_backbone(config: TrainConfig, dataset: DataSet) -> Backbone:
    torch.manual_seed(config.seed)
    backbone = load_backbone(config, dataset.catalogue.texts())
    taken = {f"<|{name}|>" for name in MARKERS} & set(backbone.tokenizer.get_vocab())
    if taken:
        raise BackboneError(
            f"backbone {config.backbone.name!r} already knows {min(taken)}; use one that is no bundle"
        )
    _check_method(backbone.model, config)
    positions = getattr(backbone.model.config, "max_position_embeddings", None)
    if positions is not None and config.sequence.max_tokens > positions:
        raise BackboneError(
            f"--sequence.max-tokens {config.sequence.max_tokens} exceeds the backbone's context of {positions} "
            "positions"
        )
    return backbone


def _check_method(model: PreTrainedModel, config: TrainConfig) -> None:
    """Raise `GemsError` if the settings of GEMS do not fit the backbone."""
    check_method(model, config)
    if uses_knowledge(config):
        if config.knowledge.basis is None:
            assets.fetch("wikipedia")
        else:
            KnowledgeBasis.load(config.knowledge.basis).check(find_linears(model))


def _bundle_info(config: TrainConfig, trained: Trained) -> BundleInfo:
    created = datetime.now(UTC)
    dataset, vocabulary = trained.dataset, trained.prepared.vocabulary
    origin = trained.prepared.origin if trained.prepared.identifiers.codebooks else VectorOrigin("")
    return BundleInfo(
        bundle_id=f"{dataset.info.name}-{config.method}-{created:%Y%m%dT%H%M%SZ}",
        scheme=config.identifiers.scheme,
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
