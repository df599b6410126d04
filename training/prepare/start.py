"""The first part of a training: it makes the preparations that are missing, after everything was checked."""

from __future__ import annotations

import shutil
from collections.abc import Callable
from pathlib import Path

import torch
from rich.console import Console
from rich.text import Text
from transformers import PreTrainedModel

from gems import KnowledgeBasis, find_linears
from index.identifiers.registry import follows_behaviour
from index.sequence.events import Event
from index.sequence.language_model import is_encoder_decoder
from index.sequence.vocabulary import MARKERS
from training.config import TrainConfig
from training.data import assets
from training.data.dataset import DataSet
from training.data.item_vectors import VectorSource, advice_on_encoder, vector_source
from training.data.schema import DataError
from training.data.splits import Split, leave_one_out
from training.methods.registry import check_method
from training.model.backbones import Backbone, BackboneError, load_backbone
from training.prepare.behaviour import BehaviourSource, behaviour_source
from training.prepare.fused_vectors import fused_source
from training.prepare.knowledge_basis import KnowledgeError, collect, knowledge_path, uses_knowledge
from training.prepare.preparation import is_prepared, open_prepared, prepare
from training.prepare.renewal import Renewal
from training.prepare.tuned_vectors import tuned_source


def make_preparations(
    folder: Path,
    config: TrainConfig,
    data: Path,
    dataset: DataSet,
    split: Split,
    device: torch.device,
    console: Console,
    record: Callable[[], None] | None,
    renewal: Renewal | None = None,
) -> None:
    """Fill `folder` with the missing preparations of a training.

    data: folder of the data set.
    dataset: on the catalogue of the run.
    device: where texts are embedded, and the knowledge of the backbone is collected.
    record: makes the run folder; called when no error of the user is possible any more. None for a resumed run.
    renewal: the bundle to go on from, if there is one.
    """
    backbone = source = behaviour = None
    if not is_prepared(folder):
        if renewal is None:
            backbone = _checked_backbone(config, dataset)
            source = _source(config, data, dataset, split, folder, device, console)
            behaviour = _behaviour(config, data, dataset, split, folder)
        else:
            _check_method(renewal.bundle.load_model(), config)
            source = renewal.source(config, dataset.catalogue, folder, device.type)
    elif record is not None:  # a new run on old preparations
        _check_method(open_prepared(folder).model, config)
    old = _old_histories(config, dataset, split, renewal)
    if record is not None:
        record()
    if source is not None and renewal is not None:
        renewal.prepare(folder, dataset.catalogue, source, console)
    elif source is not None and backbone is not None:
        prepare(folder, dataset.catalogue, backbone, source, behaviour, config, console)
    if source is not None and source.kept is not None:
        shutil.rmtree(source.kept, ignore_errors=True)
    if (
        uses_knowledge(config)
        and config.knowledge.basis is None
        and not knowledge_path(folder, config).exists()
    ):
        prepared = open_prepared(folder)
        prepared.model.to(device)
        collect(folder, prepared, config, console, old)


def _old_histories(
    config: TrainConfig, dataset: DataSet, split: Split, renewal: Renewal | None
) -> list[list[Event]] | None:
    """Return old histories without the items that the last model does not know; None if no basis needs them.

    Raises `KnowledgeError` if there is no last model, or no such history.
    """
    knowledge = config.knowledge
    if knowledge.source == "text":
        if knowledge.histories is not None:
            raise KnowledgeError(
                "knowledge.histories is for the source of that name: add knowledge.source histories"
            )
        return None
    if renewal is None:
        raise KnowledgeError(
            "knowledge.source 'histories' keeps what the last model knows: say which one with --from BUNDLE"
        )
    histories = split.train
    if knowledge.histories is not None:
        try:
            histories = leave_one_out(DataSet.load(knowledge.histories).on(dataset.catalogue)).train
        except DataError as error:
            raise KnowledgeError(f"knowledge.histories {knowledge.histories}: {error}") from error
    known = [[event for event in history if renewal.knows(event.item)] for history in histories]
    if not any(known):
        raise KnowledgeError(
            "no history holds an item that the last model knows: name a data set with old ones (knowledge.histories)"
        )
    return known


def _source(
    config: TrainConfig,
    data: Path,
    dataset: DataSet,
    split: Split,
    folder: Path,
    device: torch.device,
    console: Console,
) -> VectorSource:
    if config.identifiers.vectors is None and (
        advice := advice_on_encoder(dataset.catalogue, config.identifiers.encoder)
    ):
        console.print(Text(advice, style="yellow"), soft_wrap=True)
    match config.identifiers.embeddings:
        case "alphafuse":
            return fused_source(config, data, dataset, split, folder, console)
        case "bi-encoder":
            return tuned_source(config, data, dataset, split, folder)
    return vector_source(config, dataset.catalogue, beside=folder, device=device.type)


def _behaviour(
    config: TrainConfig, data: Path, dataset: DataSet, split: Split, folder: Path
) -> BehaviourSource | None:
    if not follows_behaviour(config.identifiers.scheme, config.identifiers.quantiser):
        return None
    return behaviour_source(config, data, dataset, split, folder)


def _checked_backbone(config: TrainConfig, dataset: DataSet) -> Backbone:
    torch.manual_seed(config.seed)
    backbone = load_backbone(config, dataset.catalogue.texts())
    taken = {f"<|{name}|>" for name in MARKERS} & set(backbone.tokenizer.get_vocab())
    if taken:
        raise BackboneError(
            f"backbone {config.backbone.name!r} already knows {min(taken)}; use one that is no bundle"
        )
    if config.codes.learner == "genret" and not is_encoder_decoder(backbone.model):
        raise BackboneError(
            f"codes.learner 'genret' learns codes inside an encoder-decoder, and {config.backbone.name!r} is none: use "
            "--backbone.name t5-tiger or a T5"
        )
    positions = getattr(backbone.model.config, "max_position_embeddings", None)
    if positions is not None and config.sequence.max_tokens > positions:
        raise BackboneError(
            f"--sequence.max-tokens {config.sequence.max_tokens} exceeds the backbone's context of {positions} "
            "positions"
        )
    _check_method(backbone.model, config)
    return backbone


def _check_method(model: PreTrainedModel, config: TrainConfig) -> None:
    """Raise `GemsError` if the settings of GEMS do not fit the backbone."""
    check_method(model, config)
    if uses_knowledge(config):
        if config.knowledge.basis is None:
            if config.knowledge.source == "text":
                assets.fetch("wikipedia")
        else:
            KnowledgeBasis.load(config.knowledge.basis).check(find_linears(model))
