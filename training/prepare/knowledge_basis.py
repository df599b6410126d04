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
    """Whether a null space is kept: a backbone from scratch knows nothing yet."""
    return config.method == "gems" and config.null_space and not config.from_scratch


def knowledge_path(folder: Path, config: TrainConfig) -> Path:
    """The basis that the settings name, or the one that is kept beside the prepared backbone."""
    kept = f"knowledge-{config.knowledge_tokens}-{config.knowledge_cap:g}.safetensors"
    return config.knowledge or folder / kept


def collect(folder: Path, prepared: Prepared, config: TrainConfig, console: Console) -> None:
    """Collect the basis on `knowledge_tokens` tokens of the knowledge articles, and write it in one rename."""
    positions = getattr(prepared.model.config, "max_position_embeddings", WINDOW)
    windows = token_windows(
        prepared.tokenizer, knowledge_articles(), min(WINDOW, positions), config.knowledge_tokens
    )
    batches = [
        _inputs(prepared.model, torch.from_numpy(windows[k : k + BATCH]))
        for k in range(0, len(windows), BATCH)
    ]
    linears = find_linears(prepared.model)
    with Progress(console=console) as bar:
        row = bar.add_task("knowledge of the backbone", total=len(batches))
        basis = collect_knowledge(
            prepared.model.base_model,
            batches,
            linears,
            keep=config.knowledge_cap,
            progress=lambda done, total: bar.update(row, completed=done, total=total),
        )
    with atomic_write(knowledge_path(folder, config)) as draft:
        basis.save(draft)


def _inputs(model: PreTrainedModel, ids: Tensor) -> dict[str, Any]:
    """What the model is called with to read general text, int64 [B, T]; an encoder-decoder reads the first half and
    goes on with the second."""
    if not is_encoder_decoder(model):
        return {"input_ids": ids, "use_cache": False}
    first, second = halves(model, ids)
    return {"input_ids": first, "decoder_input_ids": second, "use_cache": False}
