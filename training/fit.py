"""Data set → item vectors → identifiers → backbone → a trained model in memory.

Errors come first: nothing is written before data, settings and backbone are known to fit. The run folder then
records everything (see docs/training.md).
"""

from __future__ import annotations

import os
from collections.abc import Sequence
from contextlib import nullcontext
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any, cast

import numpy as np
import torch
from rich.console import Console
from torch import nn
from transformers import PreTrainedModel

from gems import KnowledgeBasis, find_linears
from index.pool.lexical import check_attributes
from index.trie.allowed import Allowed
from index.trie.trie import Trie
from server.engine.torch_backend.engine import TorchEngine
from training.codes.stage import check_codes, learn_codes
from training.config import TrainConfig
from training.data.dataset import DataSet
from training.data.splits import Split, leave_one_out
from training.evaluation.ranking import cases_of
from training.loop.batches import BatchSource, logged_batches
from training.loop.extra_tasks import check_tasks
from training.loop.pairs import Pairs
from training.loop.probe import ConflictProbe
from training.loop.sharding import ShardedModel, check_sharding
from training.loop.trainer import Trainer
from training.loop.validation import Validator
from training.methods.method import Method
from training.methods.registry import make_method
from training.model.forward import checkpoint_blocks
from training.model.precision import chosen_precision
from training.model.text_part import TextPart, divides_rows
from training.prepare.knowledge_basis import knowledge_path, uses_knowledge
from training.prepare.preparation import Prepared, open_prepared
from training.prepare.renewal import Renewal
from training.prepare.renewed_settings import RECORDED, recorded
from training.prepare.start import make_preparations
from training.run.device import chosen_device
from training.run.locks import claim
from training.run.parallel import Parallel
from training.run.run_folder import RunError, check_run, record_run


@dataclass(frozen=True)
class Trained:
    """A finished training in memory.

    batches: what it was trained on.
    record: facts about the training for the manifest of the bundle.
    removed: catalogue rows that answers must not hold.
    """

    dataset: DataSet
    split: Split
    prepared: Prepared
    engine: TorchEngine
    batches: BatchSource
    method: Method
    record: dict[str, Any]
    removed: Sequence[int] = ()


def fit(
    data: Path,
    out: Path,
    config: TrainConfig,
    *,
    resume: bool = False,
    renewal: Renewal | None = None,
    console: Console,
    parallel: Parallel | None = None,
    preparations: Path | None = None,
) -> Trained | None:
    """Prepare and train, without publishing. Return None if a bundle is published already.

    renewal: the bundle to go on from; None to train from nothing.
    parallel: the processes that train together.
    preparations: folder of identifiers and extended backbone, if not in `out`; runs that agree in
        `training.prepare.preparation.SHAPED_BY` may share it.
    """
    parallel = parallel or Parallel()
    if not parallel.main:
        console = Console(quiet=True)
    dataset = DataSet.load(data)
    removed: Sequence[int] = ()
    if renewal is not None:
        renewal.check(config, dataset)
        removed = renewal.removed(dataset)
        dataset = renewal.on_items(dataset)
    split = leave_one_out(dataset)
    if not split.validation:
        raise RunError(
            "nobody has three interactions, so there is nothing to validate on; more data is needed"
        )
    for task in config.sequence.trained_tasks:
        if len(config.sequence.trained_tasks) == 1 and not cases_of(task, split.validation):
            raise RunError(
                f"no held-out event can validate a model of {task.value} alone: the log has no queries; import one "
                "with searches, or train both tasks (sequence.tasks)"
            )
    check_tasks(config.sequence.extra_tasks, dataset.catalogue, split.train)
    check_attributes(dataset.catalogue, config.search_attributes)
    check_sharding(config)
    learns_codes = config.codes.learner is not None and renewal is None  # a bundle's identifiers stay
    if learns_codes:
        check_codes(config, dataset, split)
    device = chosen_device(config.device)
    precision = chosen_precision(config, device)
    continued = parallel.agree(
        check_run(out, config, dataset, resume, None if renewal is None else renewal.sha256)
        if parallel.main
        else False
    )
    if (out / "bundle").exists():
        return None
    torch.set_num_threads(config.threads or max(1, (os.cpu_count() or 1) // parallel.size))
    folder = preparations or out / "prepared"
    if parallel.main:
        lock = claim(folder.with_suffix(".lock"), wait=True) if preparations else nullcontext()
        with lock:
            make_preparations(
                folder,
                config,
                data,
                dataset,
                split,
                device,
                console,
                None
                if continued
                else partial(
                    record_run,
                    out,
                    config,
                    dataset,
                    data,
                    config.threads,
                    None if renewal is None else renewal.record,
                ),
                renewal,
            )
    if learns_codes:
        if parallel.main:
            learn_codes(folder, out / "codes", config, dataset, split, device, console)
        folder = out / "codes" / "prepared"
    parallel.wait()
    prepared = open_prepared(folder)
    knowledge = KnowledgeBasis.load(knowledge_path(folder, config)) if uses_knowledge(config) else None
    encoder = prepared.encoder(config)
    prepared.model.to(device)
    if config.backbone.activation_checkpointing:
        checkpoint_blocks(prepared.model)
    # Raises an error before the training if the model could not be served.
    engine = TorchEngine(
        prepared.model,
        Trie.build(prepared.identifiers.codes),
        prepared.vocabulary,
        normalisation=config.identifiers.normalisation,
        searches=_searches(prepared),
    )
    pairs = Pairs.of(prepared.model, encoder, config.sequence.targets)
    batches = logged_batches(
        encoder,
        split.train,
        dataset.catalogue,
        config,
        pairs,
        beside=config.sequence.tasks_beside_log,
        log_after=config.sequence.log_after,
        min_parts=parallel.size,
    )
    sharded = ShardedModel(prepared.model, parallel) if config.backbone.shard else None
    model = prepared.model if sharded is None else sharded.trained
    linears = find_linears(model)
    validator = Validator(prepared.model, encoder, engine, split.validation, config, pairs)
    torch.manual_seed(config.seed)  # new weights start with the same values in new and resumed runs
    text = _text_part(model, prepared, config)
    method = make_method(model, config, prepared.vocabulary.first_added, knowledge, parallel)
    weights = {name: cast(nn.Parameter, linear.weight) for name, linear in linears.items()}
    probe = (
        ConflictProbe(prepared.model, encoder, validator.cases, weights, config, pairs)
        if config.validation.conflict_cases and sharded is None
        else None
    )
    trainer = Trainer(
        out,
        config.with_fixed_codes if learns_codes else config,
        model,
        prepared.vocabulary,
        method,
        batches,
        validator,
        probe,
        parallel,
        text,
        sharded,
        precision,
    )
    if continued and trainer.resume():
        console.print(f"resumed at step {trainer.progress.step} of {trainer.total_steps}")
    if renewal is not None:
        console.print(renewal.summary(dataset.catalogue, removed))
    size = sum(p.numel() for p in model.parameters())
    console.print(
        f"{len(split.train)} histories, {len(dataset.catalogue)} items, identifiers of "
        f"{prepared.vocabulary.levels} codes {prepared.vocabulary.codebook_sizes}; {size / 1e6:.1f} M weights; "
        f"method {config.method}; on {device}, {precision}"
    )
    validation = trainer.train()
    record = {
        "method": config.method,
        "backbone": config.backbone.name,
        "seed": config.seed,
        "steps": trainer.progress.step,
        "best_step": trainer.progress.best_step,
        "seconds": round(trainer.progress.seconds, 1),
        "cpu_seconds": round(trainer.progress.cpu_seconds, 1),
        "validation": validation,
        RECORDED: recorded(config),
    }
    if renewal is not None:
        record["renewed_from"] = renewal.bundle.info.bundle_id
    conflict = probe() if probe is not None and parallel.main else {}
    if conflict:
        # conflict of the published model
        record["conflict"] = round(float(np.mean(list(conflict.values()))), 4)
    return Trained(dataset, split, prepared, engine, batches, method, record, removed)


def _searches(prepared: Prepared) -> Allowed | None:
    """Return all items under the identifiers that searches write, if they have their own."""
    codes = prepared.identifiers.search_codes
    return None if codes is None else Allowed.of(Trie.build(codes))


def _text_part(model: PreTrainedModel, prepared: Prepared, config: TrainConfig) -> TextPart | None:
    """Divide the rows of items of a model, where `divides_rows`."""
    codes, spelled = prepared.identifiers.codes, prepared.vocabulary.spelled
    if not divides_rows(model, config, levels=codes.shape[1], spelled=spelled):
        return None
    vectors = np.load(prepared.vectors, allow_pickle=False)
    in_order = np.empty_like(vectors)
    in_order[codes[:, 0]] = vectors
    return TextPart(model, int(prepared.vocabulary.first_code[0]), in_order)
