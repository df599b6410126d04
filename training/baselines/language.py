"""Language vectors of the items, the start of three kinds of SASRec's item vectors and of the benchmark."""

from __future__ import annotations

from pathlib import Path

import numpy as np
from numpy.typing import NDArray
from rich.console import Console

from index.catalogue import Catalogue
from index.embeddings import TextEncoder
from training.data import assets
from training.data.embedding import embed_items
from training.data.item_vectors import MINILM
from training.data.vectors import read_vectors


def language_vectors(catalogue: Catalogue, console: Console) -> NDArray[np.float32]:
    """Return MiniLM vectors of the items' texts: float32 [N, 384]."""
    return embed_items(TextEncoder(assets.fetch(MINILM)), catalogue, console)


def given_or_made(
    file: Path | None, catalogue: Catalogue, console: Console
) -> tuple[NDArray[np.float32], NDArray[np.float32] | None]:
    """Return the language vectors of a file, or new ones: float32 [N, d]; and the new ones again, else None."""
    if file is not None:
        return read_vectors(file, catalogue.item_ids), None
    made = language_vectors(catalogue, console)
    return made, made
