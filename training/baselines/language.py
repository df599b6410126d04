"""Language vectors of the items, the start of three kinds of SASRec's item vectors and of the benchmark."""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray
from rich.console import Console

from index.catalogue import Catalogue
from index.embeddings import TextEncoder
from training.data import assets
from training.data.embedding import embed_items
from training.data.item_vectors import MINILM


def language_vectors(catalogue: Catalogue, console: Console) -> NDArray[np.float32]:
    """Return MiniLM vectors of the items' texts: float32 [N, 384]."""
    return embed_items(TextEncoder(assets.fetch(MINILM)), catalogue, console)
