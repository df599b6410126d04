"""Item embeddings: mean-pooled, normalised sentence vectors of the items' texts."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import numpy as np
import torch
from numpy.typing import NDArray
from transformers import AutoModel, AutoTokenizer


class TextEncoder:
    """A sentence encoder in the Hugging Face format (all-MiniLM-L6-v2 and its like)."""

    def __init__(self, folder: Path, max_tokens: int = 64) -> None:
        self._tokenizer = AutoTokenizer.from_pretrained(folder)
        self._model = AutoModel.from_pretrained(folder).eval()
        self._max_tokens = max_tokens
        self.dimensions = int(self._model.config.hidden_size)

    @torch.inference_mode()
    def encode(self, texts: Sequence[str], batch_size: int = 64) -> NDArray[np.float32]:
        """Unit vectors, float32 [len(texts), d]; equal texts get equal vectors."""
        distinct = sorted(set(texts), key=lambda text: (len(text), text))  # alike lengths share a batch
        row = {text: k for k, text in enumerate(distinct)}
        vectors = []
        for start in range(0, len(distinct), batch_size):
            batch = distinct[start : start + batch_size]
            tokens = self._tokenizer(
                batch, padding=True, truncation=True, max_length=self._max_tokens, return_tensors="pt"
            )
            hidden = self._model(**tokens).last_hidden_state  # [B, T, d]
            mask = tokens["attention_mask"].unsqueeze(-1).to(hidden.dtype)
            mean = (hidden * mask).sum(1) / mask.sum(1)
            vectors.append(torch.nn.functional.normalize(mean, dim=-1).numpy())
        return np.concatenate(vectors)[[row[text] for text in texts]]
