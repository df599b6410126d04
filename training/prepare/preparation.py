"""Start of a training: item vectors, identifiers and the extended backbone, kept in the run folder."""

from __future__ import annotations

import hashlib
import json
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray
from rich.console import Console
from transformers import AutoTokenizer, PreTrainedModel, PreTrainedTokenizerFast

from index.catalogue import Catalogue
from index.files import atomic_folder
from index.identifiers.codebooks import Codebooks
from index.identifiers.identifiers import Identifiers, ItemsToName
from index.identifiers.registry import load_scheme
from index.sequence.encoder import SequenceEncoder
from index.sequence.language_model import load_language_model
from index.sequence.vocabulary import IdentifierVocabulary
from training.config import TrainConfig
from training.data.item_vectors import VectorOrigin, VectorSource
from training.errors import UserError
from training.model.backbones import Backbone
from training.model.extension import extend_backbone
from training.prepare.behaviour import BehaviourSource
from training.settings import flat

# groups and settings that shape the preparation: runs that agree in them, and in the data, may share it
SHAPED_BY = ("seed", "backbone", "identifiers", "sequence.max_tokens")
NOT_SHAPED_BY = (
    "identifiers.normalisation", "identifiers.text_part", "backbone.activation_checkpointing", "backbone.shard",
    "backbone.precision",
)  # fmt: skip

ITEM_VECTORS = "item_vectors.npy"
VECTOR_ORIGIN = "vector_origin.json"
CODEBOOKS, SEARCH_CODEBOOKS = "codebooks", "search_codebooks"
CODES = "codes.npz"


@dataclass(frozen=True)
class Prepared:
    """Identifiers of the catalogue, origin of their vectors, and a backbone that can write them.

    vectors: file of the item vectors, float32 [N, d].
    """

    identifiers: Identifiers
    origin: VectorOrigin
    model: PreTrainedModel
    tokenizer: PreTrainedTokenizerFast
    vocabulary: IdentifierVocabulary
    vectors: Path

    def later_vectors(self) -> NDArray[np.float32] | None:
        """Return the item vectors, float32 [N, d]; None if later items cannot have such vectors.

        That is so where vectors hold behaviour besides text.
        """
        if self.origin.embeddings not in ("text", "file"):
            return None
        vectors: NDArray[np.float32] = np.load(self.vectors, allow_pickle=False)
        return vectors

    def encoder(self, config: TrainConfig) -> SequenceEncoder:
        """Return the encoder of sequences and prompts."""
        return SequenceEncoder(
            self.tokenizer,
            self.vocabulary,
            self.identifiers.codes,
            search_codes=self.identifiers.search_codes,
            max_tokens=config.sequence.max_tokens,
            max_events=config.sequence.max_events,
            max_query_tokens=config.sequence.max_query_tokens,
        )


def prepare(
    folder: Path,
    catalogue: Catalogue,
    backbone: Backbone,
    source: VectorSource,
    behaviour: BehaviourSource | None,
    config: TrainConfig,
    console: Console,
) -> None:
    """Make identifiers, extend the backbone, and write both to `folder`: all of it or nothing.

    behaviour: source of vectors of behaviour, for identifiers that follow it.
    """
    with atomic_folder(folder, single_writer=True, replace=True) as draft:
        made = source.make(console)
        vectors = made.vectors
        learned = None if behaviour is None else behaviour(console)
        with console.status("identifiers and backbone"):
            titles = [item.title for item in catalogue]
            to_name = ItemsToName(titles, vectors, backbone.tokenizer, learned)
            identifiers = load_scheme(config.identifiers.scheme).identifiers(to_name, config.for_scheme)
            vocabulary = extend_backbone(backbone, identifiers, titles, vectors)
        if made.later is not None:
            identifiers = identifiers.behind(made.later)
        save_prepared(
            draft, identifiers, vocabulary, backbone.model, backbone.tokenizer, source.origin, vectors
        )


def save_prepared(
    draft: Path,
    identifiers: Identifiers,
    vocabulary: IdentifierVocabulary,
    model: PreTrainedModel,
    tokenizer: PreTrainedTokenizerFast,
    origin: VectorOrigin,
    vectors: NDArray[np.float32],
) -> None:
    """Write the files that `open_prepared` reads. identifiers: with the codebooks that name later items."""
    np.save(draft / ITEM_VECTORS, vectors)
    origin.save(draft / VECTOR_ORIGIN)
    model.save_pretrained(draft / "backbone")
    tokenizer.save_pretrained(draft / "backbone")
    if identifiers.codebooks is not None:
        identifiers.codebooks.save(draft / CODEBOOKS)
    if identifiers.search_codebooks is not None:
        identifiers.search_codebooks.save(draft / SEARCH_CODEBOOKS)
    own: dict[str, Any] = {}
    if identifiers.search_codes is not None:
        own["search_codes"] = identifiers.search_codes
    np.savez(
        draft / CODES,
        scheme=np.array(identifiers.scheme),
        codes=identifiers.codes,
        codebook_sizes=np.array(identifiers.codebook_sizes),
        first_added=np.array(vocabulary.first_added),
        **own,
    )


def shape_of(config: TrainConfig) -> dict[str, Any]:
    """Return the settings that shape the preparation, by their dotted names."""
    return {
        name: value
        for name, value in flat(config.model_dump(mode="json")).items()
        if name not in NOT_SHAPED_BY and (name in SHAPED_BY or name.split(".")[0] in SHAPED_BY)
    }


def shape_key(config: TrainConfig, data: str) -> str:
    """Return the name of a preparation that all runs may share which agree in its shape and in the data.

    data: fingerprint of the data set.
    """
    shape = json.dumps([data, shape_of(config)])
    return hashlib.sha256(shape.encode()).hexdigest()[:16]


def is_prepared(folder: Path) -> bool:
    """Return whether `prepare` has finished in a folder."""
    return (folder / CODES).exists()


def open_prepared(folder: Path, scheme: str = "") -> Prepared:
    """Read the files that `prepare` wrote. Every run starts from them, new or resumed.

    scheme: of the identifiers, for a folder of an older version, which does not tell it.
    """
    stored = np.load(folder / CODES, allow_pickle=False)
    scheme = str(stored["scheme"]) if "scheme" in stored else scheme
    if not scheme:
        raise UserError(
            f"{folder} is of an older version and does not tell its identifiers; prepare it again"
        )
    sizes = tuple(int(size) for size in stored["codebook_sizes"])
    source = folder / "backbone"
    model = load_language_model(source, local=True)
    tokenizer = AutoTokenizer.from_pretrained(source, local_files_only=True)
    known, searched = (
        Codebooks.open(folder / name) if (folder / name).exists() else None
        for name in (CODEBOOKS, SEARCH_CODEBOOKS)
    )
    search_codes = stored.get("search_codes")
    identifiers = Identifiers(scheme, stored["codes"], sizes, known, search_codes, searched)
    vocabulary = IdentifierVocabulary(int(stored["first_added"]), sizes, spelled=identifiers.spelled)
    return Prepared(
        identifiers,
        VectorOrigin.load(folder / VECTOR_ORIGIN),
        model,
        tokenizer,
        vocabulary,
        folder / ITEM_VECTORS,
    )
