"""Sources of item vectors: a text encoder, or a file.

A source is checked before any file is written. The bundle records the origin, because later items must be embedded in
the same way. Vectors that fuse text with behaviour start from these vectors (`training.prepare.fused_vectors`).
"""

from __future__ import annotations

import json
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass, fields
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
from huggingface_hub import snapshot_download
from numpy.typing import NDArray
from rich.console import Console

from index.catalogue import Catalogue, Item
from index.embeddings import FILES, EmbeddingError, TextEncoder, check_texts, encoder_hash
from index.identifiers.codebooks import Layer
from index.records import Record
from index.scripts import shares
from training.config import TrainConfig
from training.data import assets
from training.data.embedding import embed_items, embedding_folder
from training.data.schema import DataError
from training.data.vectors import read_vectors
from training.errors import UserError

if TYPE_CHECKING:
    from index.bundle.bundle import BundleInfo  # slow import, of torch, which those who make data do not need

MINILM = "minilm"  # name of the asset
LOOKED_AT = 2_000  # texts of a catalogue
FOREIGN = 0.2  # share of letters that are not Latin from which on an English encoder is the wrong one


class ItemVectorError(UserError):
    """Item vectors are not available from this source. The message names the remedy."""


@dataclass(frozen=True)
class VectorOrigin:
    """The origin of item vectors, as a bundle records it.

    embeddings: `text`, `file`, `alphafuse` or `bi-encoder`.
    encoder, encoder_sha256: name or folder of the encoder, and the hash of its files; empty if vectors are from a file.
    """

    embeddings: str
    encoder: str = ""
    encoder_sha256: str = ""

    def save(self, path: Path) -> None:
        """Write a JSON file."""
        path.write_text(json.dumps(asdict(self), indent=2) + "\n", "utf-8")

    @classmethod
    def load(cls, path: Path) -> VectorOrigin:
        """Read a file that `save` wrote. Raises `DataError`."""
        try:
            record = Record.read(path)
            return cls(*(record.text(each.name, empty=True) for each in fields(cls)))
        except (OSError, ValueError) as error:
            raise DataError(f"{error}; delete {path.parent} to prepare the run again") from error


@dataclass(frozen=True, eq=False)
class ItemVectors:
    """Vectors of a catalogue.

    vectors: float32 [N, d].
    later: maps the vector of a later item, embedded by the origin, into the space of `vectors`. A later item has no
    behaviour yet. None if both spaces are the same.
    """

    vectors: NDArray[np.float32]
    later: Layer | None = None


@dataclass(frozen=True, eq=False)
class VectorSource:
    """A source of item vectors.

    make: returns the vectors of the catalogue, and may train for it.
    kept: folder with what an embedding has done so far, for the case that it is killed; to be deleted when the vectors
    are safe elsewhere.
    """

    origin: VectorOrigin
    make: Callable[[Console], ItemVectors]
    kept: Path | None = None


def vector_source(
    config: TrainConfig, catalogue: Catalogue, *, beside: Path | None = None, device: str = "cpu"
) -> VectorSource:
    """Return the source that the settings name, checked against the catalogue.

    beside: an embedding that is killed leaves what it has next to this folder, and goes on there.
    device: where texts are embedded.
    Raises `VectorFileError`, `ItemVectorError`, `EmbeddingError` or `AssetError`.
    """
    if config.identifiers.vectors is not None:
        vectors = read_vectors(config.identifiers.vectors, catalogue.item_ids)
        return VectorSource(VectorOrigin("file"), lambda _: ItemVectors(vectors))
    check_texts(catalogue)
    folder = encoder_folder(config.identifiers.encoder)
    encoder = TextEncoder(folder, device)
    origin = VectorOrigin("text", config.identifiers.encoder, encoder_hash(folder))
    kept = None if beside is None else embedding_folder(beside, origin.encoder_sha256, catalogue.texts())
    return VectorSource(
        origin, lambda console: ItemVectors(embed_items(encoder, catalogue, console, kept)), kept
    )


def advice_on_encoder(catalogue: Catalogue, encoder: str) -> str | None:
    """Return a sentence if an encoder does not know the language of the items; None if it may. encoder: its name."""
    if encoder != MINILM:
        return None
    step = -(-len(catalogue) // LOOKED_AT)
    found = shares(catalogue[row].text() for row in range(0, len(catalogue), step))
    foreign = {script: share for script, share in found.items() if script != "Latin"}
    if sum(foreign.values()) < FOREIGN:
        return None
    listed = ", ".join(f"{script} {share:.0%}" for script, share in found.items() if share >= 0.01)
    return (
        f"the texts of the items are written in {listed}, and the packaged encoder {MINILM!r} knows English: "
        "train with --identifiers.encoder FOLDER, a sentence encoder of their language or of many languages, or with "
        "vectors of your own, --identifiers.vectors FILE"
    )


def encoder_folder(name: str) -> Path:
    """Return the folder of an encoder.

    name: `minilm` (the asset), a folder, or a model of the Hugging Face hub or its cache.
    Raises `ItemVectorError` if the model is not available, `AssetError` if the asset is not.
    """
    if name == MINILM:
        return assets.fetch(MINILM)
    if Path(name).expanduser().is_dir():
        return Path(name).expanduser()
    try:
        return Path(snapshot_download(name, allow_patterns=[f"*{suffix}" for suffix in FILES]))
    except Exception as error:  # the hub raises OSError, ValueError and its own errors
        raise ItemVectorError(
            f"item encoder {name!r} is not available: {error}. Give {MINILM!r}, a folder with a sentence-transformers "
            "or Hugging Face encoder, or (when connected) a model name"
        ) from error


def new_item_vectors(
    info: BundleInfo, given: Sequence[Item], file: Path | None = None, encoder: str | None = None
) -> Callable[[Sequence[Item]], NDArray[np.float32]]:
    """Return a function that embeds new items like the items of a bundle: some of `given` → float32 [n, d].

    given: all items of an update.
    file: vectors of these items, for a bundle whose vectors are from a file (fused or not).
    encoder: name or folder of the bundle's encoder, if it has moved.
    File and encoder are opened only when new items need them.
    Raises `ItemVectorError` if a file does not fit the bundle. The function raises `ItemVectorError`, `VectorFileError`
    or `EmbeddingError`.
    """
    from_file = bool(info.item_embeddings) and not info.item_encoder
    if file is not None and not from_file:
        raise ItemVectorError(
            "--vectors is for bundles whose item vectors came from a file; this one's come from "
            + (f"texts, by the encoder {info.item_encoder!r}" if info.item_encoder else "nowhere")
        )

    def by_file(items: Sequence[Item]) -> NDArray[np.float32]:
        if file is None:
            raise ItemVectorError(
                f"{len(items)} items are new, and the item vectors of this bundle came from a file: give theirs with "
                "--vectors FILE"
            )
        row = {item.item_id: k for k, item in enumerate(given)}
        return read_vectors(file, list(row))[[row[item.item_id] for item in items]]

    def by_text(items: Sequence[Item]) -> NDArray[np.float32]:
        folder = encoder_folder(encoder or info.item_encoder)
        if encoder_hash(folder) != info.item_encoder_sha256:
            raise EmbeddingError(
                f"{folder} is not the encoder of this bundle ({info.item_encoder!r}): its files are others, and its "
                "vectors could not be compared with those of its items. Name the right one with --item-encoder"
            )
        return TextEncoder(folder).encode_items(items)

    return by_file if from_file else by_text
