"""Embedding of a catalogue: hours for a million items, so that it shows its progress and goes on after a kill.

Vectors that are done lie next to the preparations of the run, until these are complete:

    embedding-<hash>/vectors.npy    float32 [N, d]; the hash is of the texts and the encoder
    embedding-<hash>/done.txt       number of parts that are written
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Sequence
from pathlib import Path

import numpy as np
from numpy.typing import NDArray
from rich.console import Console
from rich.progress import track

from index.catalogue import Catalogue
from index.embeddings import TextEncoder
from index.files import atomic_write

PART = 256  # items


def embed_items(
    encoder: TextEncoder, catalogue: Catalogue, console: Console, kept: Path | None = None
) -> NDArray[np.float32]:
    """Return the vectors of the items' texts, float32 [N, d], and show the progress.

    kept: folder of `embedding_folder`, to go on from; None: nothing is kept.
    """
    texts = catalogue.texts()
    order = np.argsort([len(text) for text in texts], kind="stable")  # a part holds texts of similar length
    parts = np.array_split(order, max(1, -(-len(texts) // PART)))
    shape = (len(texts), encoder.dimensions)
    vectors, done = (np.empty(shape, np.float32), 0) if kept is None else _opened(kept, shape)
    if done:
        console.print(f"{done:,} of {len(parts):,} parts of the items are embedded already")
    for number, part in enumerate(track(parts[done:], "item embeddings", console=console), done + 1):
        vectors[part] = encoder.encode([texts[row] for row in part])
        if kept is not None:
            _keep(kept, vectors, number)
    return np.array(vectors)


def embedding_folder(beside: Path, encoder_sha256: str, texts: Sequence[str]) -> Path:
    """Return where vectors are kept on the way, next to `beside`."""
    digest = hashlib.sha256(json.dumps([encoder_sha256, texts]).encode()).hexdigest()
    return beside.with_name(f"embedding-{digest[:16]}")


def _opened(kept: Path, shape: tuple[int, int]) -> tuple[NDArray[np.float32], int]:
    """Return the vectors, a map of the file, and the number of parts that are done. A damaged file begins again."""
    kept.mkdir(parents=True, exist_ok=True)
    path = kept / "vectors.npy"
    try:
        done = int((kept / "done.txt").read_text("utf-8"))
        vectors = np.lib.format.open_memmap(path, "r+")
        if vectors.shape == shape and vectors.dtype == np.float32 and done >= 0:
            return vectors, done
    except (OSError, ValueError):
        pass
    (kept / "done.txt").unlink(missing_ok=True)
    return np.lib.format.open_memmap(path, "w+", np.float32, shape), 0


def _keep(kept: Path, vectors: NDArray[np.float32], done: int) -> None:
    """Note that parts are done, after their vectors are on the disk."""
    assert isinstance(vectors, np.memmap)
    vectors.flush()
    with atomic_write(kept / "done.txt", single_writer=True) as draft:
        draft.write_text(str(done), "utf-8")
