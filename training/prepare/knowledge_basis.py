"""The knowledge basis of a run's backbone, collected on general text and kept as a file."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import torch
from rich.console import Console
from rich.progress import Progress
from torch import Tensor
from transformers import PreTrainedModel

from gems import collect_knowledge, find_linears
from index.files import atomic_write
from index.sequence.language_model import is_encoder_decoder
from training.config import TrainConfig
from training.data.general_text import knowledge_articles, token_windows
from training.model.forward import halves
from training.prepare.preparation import Prepared

WINDOW = 256
BATCH = 8


def uses_knowledge(config: TrainConfig) -> bool:
    """Return whether a null space is kept: a backbone from scratch has no knowledge yet."""
    return config.method == "gems" and config.knowledge.null_space and not config.from_scratch


def knowledge_path(folder: Path, config: TrainConfig) -> Path:
    """Return the file of the basis: the one that the settings name, or the one next to the prepared backbone."""
    kept = f"knowledge-{config.knowledge.tokens}-{config.knowledge.cap:g}.safetensors"
    return config.knowledge.basis or folder / kept


def collect(folder: Path, prepared: Prepared, config: TrainConfig, console: Console) -> None:
    """Collect the basis on `knowledge.tokens` tokens of the knowledge articles, and write it in one rename."""
    positions = getattr(prepared.model.config, "max_position_embeddings", WINDOW)
    windows = token_windows(
        prepared.tokenizer, knowledge_articles(), min(WINDOW, positions), config.knowledge.tokens
    )
    batches = [
        _inputs(prepared.model, torch.from_numpy(windows[k : k + BATCH]).to(prepared.model.device))
        for k in range(0, len(windows), BATCH)
    ]
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


def _inputs(model: PreTrainedModel, ids: Tensor) -> dict[str, Any]:
    """Return the model's arguments for general text, int64 [B, T].

    An encoder-decoder reads the first half with the encoder and continues with the second.
    """
    if not is_encoder_decoder(model):
        return {"input_ids": ids, "use_cache": False}
    first, second = halves(model, ids)
    return {"input_ids": first, "decoder_input_ids": second, "use_cache": False}
