"""The knowledge basis of a run's backbone, collected on general text or on old histories, and kept as a file.

Of a model that is trained on from a bundle, old histories show what it knows of old behaviour: their inputs to each
layer are left alone.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from rich.console import Console
from rich.progress import Progress
from torch import Tensor
from transformers import PreTrainedModel

from gems import collect_knowledge, find_linears
from index.files import atomic_write
from index.sequence.encoder import Sample
from index.sequence.events import Event
from index.sequence.language_model import is_encoder_decoder, start_token
from training.config import TrainConfig
from training.data.general_text import knowledge_articles, token_windows
from training.errors import UserError
from training.model.forward import halves
from training.prepare.preparation import Prepared

WINDOW = 256
BATCH = 8


class KnowledgeError(UserError):
    """A knowledge basis cannot be collected as requested. The message says what to do."""


def uses_knowledge(config: TrainConfig) -> bool:
    """Return whether a null space is kept: a backbone from scratch has no knowledge yet."""
    return config.method == "gems" and config.knowledge.null_space and config.has_knowledge


def knowledge_path(folder: Path, config: TrainConfig) -> Path:
    """Return the file of the basis: the one that the settings name, or the one next to the prepared backbone."""
    source = "" if config.knowledge.source == "text" else f"{config.knowledge.source}-"
    kept = f"knowledge-{source}{config.knowledge.tokens}-{config.knowledge.cap:g}.safetensors"
    return config.knowledge.basis or folder / kept


def collect(
    folder: Path,
    prepared: Prepared,
    config: TrainConfig,
    console: Console,
    histories: Sequence[Sequence[Event]] | None = None,
) -> None:
    """Collect the basis on about `knowledge.tokens` tokens, and write it in one rename.

    histories: old ones, of items that the model knows, not all of them empty; None for the knowledge articles.
    """
    batches = _texts(prepared, config) if histories is None else _histories(prepared, config, histories)
    linears = find_linears(prepared.model)
    with Progress(console=console) as bar:
        row = bar.add_task("knowledge of the backbone", total=len(batches))
        basis = collect_knowledge(
            prepared.model.base_model,
            batches,
            linears,
            keep=config.knowledge.cap,
            progress=lambda done, total: bar.update(row, completed=done, total=total),
        )
    with atomic_write(knowledge_path(folder, config), single_writer=True) as draft:
        basis.save(draft)


def _texts(prepared: Prepared, config: TrainConfig) -> list[dict[str, Any]]:
    positions = getattr(prepared.model.config, "max_position_embeddings", WINDOW)
    windows = token_windows(
        prepared.tokenizer, knowledge_articles(), min(WINDOW, positions), config.knowledge.tokens
    )
    return [
        _inputs(prepared.model, torch.from_numpy(windows[k : k + BATCH]).to(prepared.model.device))
        for k in range(0, len(windows), BATCH)
    ]


def _histories(
    prepared: Prepared, config: TrainConfig, histories: Sequence[Sequence[Event]]
) -> list[dict[str, Any]]:
    """Return the model's arguments for histories in a random order, until they hold enough tokens."""
    model, encoder = prepared.model, prepared.encoder(config)
    samples: list[Sample] = []
    missing = config.knowledge.tokens
    for k in np.random.default_rng(config.seed).permutation(len(histories)):
        if missing <= 0:
            break
        if not histories[k]:
            continue
        if is_encoder_decoder(model):
            *before, last = histories[k]
            samples.append(encoder.pair(before, last, start_token(model)))
        else:
            samples.append(encoder.sample(histories[k]))
        missing -= len(samples[-1])
    return [_padded(model, samples[k : k + BATCH]) for k in range(0, len(samples), BATCH)]


def _padded(model: PreTrainedModel, samples: Sequence[Sample]) -> dict[str, Any]:
    """Return the model's arguments for samples; padding at the end does not count."""
    if is_encoder_decoder(model):
        read, attended = _matrix([sample.prompt for sample in samples])
        written, _ = _matrix([sample.ids[:-1] for sample in samples])
        inputs = {"input_ids": read, "attention_mask": attended, "decoder_input_ids": written}
    else:
        read, attended = _matrix([sample.ids for sample in samples])
        inputs = {"input_ids": read, "attention_mask": attended}
    return {name: each.to(model.device) for name, each in inputs.items()} | {"use_cache": False}


def _matrix(rows: Sequence[NDArray[np.int64]]) -> tuple[Tensor, Tensor]:
    """Return rows of tokens below each other, int64 [B, T], and which are no padding, int64 [B, T]."""
    ids = torch.zeros(len(rows), max(map(len, rows)), dtype=torch.long)
    attended = torch.zeros_like(ids)
    for k, row in enumerate(rows):
        ids[k, : len(row)] = torch.from_numpy(row)
        attended[k, : len(row)] = 1
    return ids, attended


def _inputs(model: PreTrainedModel, ids: Tensor) -> dict[str, Any]:
    """Return the model's arguments for general text, int64 [B, T].

    An encoder-decoder reads the first half with the encoder and continues with the second.
    """
    if not is_encoder_decoder(model):
        return {"input_ids": ids, "use_cache": False}
    first, second = halves(model, ids)
    return {"input_ids": first, "decoder_input_ids": second, "use_cache": False}
