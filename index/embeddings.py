"""Item embeddings: normalised sentence vectors of the items' texts."""

from __future__ import annotations

import hashlib
from collections.abc import Sequence
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from index.catalogue import Item

MAX_TOKENS = 64  # longer texts are cut
FILES = (".json", ".txt", ".model", ".safetensors")  # the files of a model, without pickles and pictures


class EmbeddingError(ValueError):
    """Items cannot be embedded. The message names the encoder, or the item and its row, and the remedy."""


class TextEncoder:
    """A model of the sentence-transformers library, or a Hugging Face encoder, whose token vectors are averaged.

    dimensions: d of its vectors.
    """

    def __init__(self, folder: Path, device: str = "cpu") -> None:
        """Open the model on a device.

        Raises `EmbeddingError` if the folder holds no such model with safetensors weights.
        """
        from sentence_transformers import SentenceTransformer  # slow to import, and only needed here

        try:
            self._model = SentenceTransformer(
                str(folder), device=device, local_files_only=True, model_kwargs={"use_safetensors": True}
            )
        except Exception as error:  # the libraries raise many kinds
            raise EmbeddingError(f"{folder} cannot be opened as a sentence encoder: {error}") from error
        self._model.max_seq_length = min(MAX_TOKENS, self._model.max_seq_length or MAX_TOKENS)
        self.dimensions = int(self._model.get_embedding_dimension() or 0)

    def encode(self, texts: Sequence[str], batch_size: int = 64) -> NDArray[np.float32]:
        """Return unit vectors, float32 [len(texts), d]. Equal texts get equal vectors."""
        distinct = sorted(set(texts))
        row = {text: k for k, text in enumerate(distinct)}
        vectors = self._model.encode(
            distinct, batch_size=batch_size, normalize_embeddings=True, show_progress_bar=False
        )
        return np.asarray(vectors, np.float32)[[row[text] for text in texts]]

    def encode_items(self, items: Sequence[Item]) -> NDArray[np.float32]:
        """Return the vectors of the items' texts, float32 [N, d]. Raises `EmbeddingError` for an item without text."""
        check_texts(items)
        return self.encode([item.text() for item in items])


def check_texts(items: Sequence[Item]) -> None:
    """Raise `EmbeddingError` if an item has no text. The message names the first one and its row, from 1."""
    bare = [row for row, item in enumerate(items) if not item.text()]
    if bare:
        raise EmbeddingError(
            f"item {items[bare[0]].item_id!r} (row {bare[0] + 1}) has no text, so that nothing says what it is like "
            f"({len(bare)} such items): give it a title, or vectors of your own"
        )


def encoder_hash(folder: Path) -> str:
    """Return the SHA-256 of the names and contents of a model's files. A different hash means different vectors."""
    digest = hashlib.sha256()
    for path in sorted(path for path in folder.rglob("*") if path.suffix in FILES and path.name[0] != "."):
        with path.open("rb") as file:
            content = hashlib.file_digest(file, "sha256").hexdigest()
        digest.update(f"{path.relative_to(folder).as_posix()} {content}\n".encode())
    return digest.hexdigest()
