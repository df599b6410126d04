"""The bundle: one directory that a server can serve.

    config.json, model.safetensors, tokenizer.json ...   a plain Hugging Face checkpoint
    codebooks/codebooks.safetensors                       names later items (semantic identifiers)
    popularity.npy                                        interactions of each item in training, if published
    bundle.json                                           its description: `BundleInfo`
    manifest.json                                         SHA-256 and size of every file above
    index/current.json, index/v1/, ...                    the items and their identifiers (`Versions`, `ItemIndex`)

A bundle is published as a whole (see `atomic_folder`): a reader sees no bundle or the complete one. After that only the
index changes, version by version. A damaged bundle is refused before any part of it is used, and the message names the
damaged file. A bundle holds no pickle and no remote code. The backbone's `generation_config.json` is not copied.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import asdict, dataclass, field, fields, replace
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from transformers import AutoTokenizer, PreTrainedModel, PreTrainedTokenizerFast

from index.bundle.item_index import ItemIndex
from index.bundle.manifest import BundleError, refusing, verify, write_manifest
from index.bundle.versions import Versions
from index.catalogue import Catalogue
from index.files import atomic_folder, read_array
from index.identifiers.codebooks import Codebooks
from index.identifiers.identifiers import SPELLED, Identifiers
from index.sequence.encoder import SequenceEncoder
from index.sequence.language_model import load_language_model
from index.sequence.vocabulary import IdentifierVocabulary

FORMAT_VERSION = 3
INDEX = "index"
CODEBOOKS = "codebooks"
POPULARITY = "popularity.npy"
NORMALISATIONS = ("level", "vocabulary")


@dataclass(frozen=True)
class BundleInfo:
    """The content of `bundle.json`.

    codebook_sizes: number of codes of each level.
    first_added_token: first token id that the backbone's own tokenizer does not use.
    normalisation: `level` (softmax over the codebook of the level, as in training) or `vocabulary` (softmax over all
    tokens, as in `transformers.generate`).
    max_tokens, max_events, max_query_tokens: limits of a prompt; see `SequenceEncoder`.
    item_embeddings: source of the vectors behind the identifiers: `text`, `file`, `alphafuse` (texts or a file, fused
    with the behaviour in the training data), or empty for none.
    item_encoder, item_encoder_sha256: name or folder of the text encoder, and the hash of its files.
    data, training: free descriptions for people (data set, simulation notes, method, figures).
    """

    bundle_id: str
    scheme: str
    codebook_sizes: tuple[int, ...]
    first_added_token: int
    normalisation: str
    max_tokens: int
    max_events: int
    max_query_tokens: int
    created: str
    code_version: str
    item_embeddings: str = ""
    item_encoder: str = ""
    item_encoder_sha256: str = ""
    data: Mapping[str, Any] = field(default_factory=dict)
    training: Mapping[str, Any] = field(default_factory=dict)
    format_version: int = FORMAT_VERSION

    @classmethod
    def load(cls, path: Path) -> BundleInfo:
        """Read `bundle.json`. Raises `BundleError` for another format version or a missing or wrong field."""
        record = json.loads(path.read_text("utf-8"))
        if record.get("format_version") != FORMAT_VERSION:
            raise BundleError(
                f"{path}: format version {record.get('format_version')!r}; this program reads {FORMAT_VERSION}"
            )
        missing = {f.name for f in fields(cls)} - set(record)
        if missing:
            raise BundleError(f"{path}: lacks {', '.join(sorted(missing))}")
        if record["normalisation"] not in NORMALISATIONS:
            raise BundleError(f"{path}: unknown normalisation {record['normalisation']!r}")
        record["codebook_sizes"] = tuple(record["codebook_sizes"])
        return cls(**{f.name: record[f.name] for f in fields(cls)})

    def vocabulary(self) -> IdentifierVocabulary:
        """Return the vocabulary of the tokens that were added to its tokenizer."""
        return IdentifierVocabulary(
            self.first_added_token, self.codebook_sizes, spelled=self.scheme == SPELLED
        )


def publish(
    target: Path,
    *,
    model: PreTrainedModel,
    tokenizer: PreTrainedTokenizerFast,
    catalogue: Catalogue,
    identifiers: Identifiers,
    info: BundleInfo,
    popularity: NDArray[np.integer] | None = None,
) -> None:
    """Write a bundle to `target`: all of it or nothing.

    target: must not exist yet.
    popularity: int [items], interactions of each item. A server cannot answer by popularity without it.
    Raises `BundleError` if `target` exists, the parts do not fit each other, or the disk is full.
    """
    if target.exists():
        raise BundleError(f"{target} exists already; publish to a new folder or remove it first")
    positions = getattr(model.config, "max_position_embeddings", None)
    if positions is not None and info.max_tokens > positions:
        raise BundleError(f"prompts of {info.max_tokens} tokens exceed the model's context of {positions}")
    try:
        with atomic_folder(target) as draft:
            (draft / INDEX).mkdir()
            versions = Versions(draft / INDEX)
            first = versions.next_name()
            index = ItemIndex.build(info.bundle_id, first, info.created, catalogue, identifiers.codes)
            versions.publish(first, index.save)
            model.save_pretrained(draft)
            (draft / "generation_config.json").unlink(missing_ok=True)
            tokenizer.save_pretrained(draft)
            if identifiers.codebooks is not None:
                identifiers.codebooks.save(draft / CODEBOOKS)
            if popularity is not None:
                np.save(draft / POPULARITY, popularity.astype(np.int64))
            (draft / "bundle.json").write_text(json.dumps(asdict(info), indent=2) + "\n", "utf-8")
            for path in draft.rglob("*.safetensors"):
                path.chmod(0o644)  # safetensors writes 0600: a server of another user could not read it
            write_manifest(draft, apart=INDEX)
    except Exception as error:
        if target.exists():
            raise BundleError(f"{target} was published, but not synced to disk: {error}") from error
        raise BundleError(f"{target} was not published, nothing was left behind: {error}") from error


@dataclass(frozen=True, eq=False)
class Bundle:
    """An opened bundle. The weights stay on disk until `load_model`."""

    path: Path
    info: BundleInfo
    index: ItemIndex
    tokenizer: PreTrainedTokenizerFast
    vocabulary: IdentifierVocabulary
    encoder: SequenceEncoder

    @classmethod
    def open(cls, path: Path | str) -> Bundle:
        """Check and open a bundle. Raises `BundleError` if it is not complete and undamaged."""
        path = Path(path)
        with refusing(path, "opened"):
            verify(path, apart=INDEX)
            info = BundleInfo.load(path / "bundle.json")
            tokenizer = AutoTokenizer.from_pretrained(path, local_files_only=True)
            vocabulary = info.vocabulary()
            if tokenizer.convert_tokens_to_ids(vocabulary.token_names()[-1]) != vocabulary.size - 1:
                raise BundleError(f"{path}: the tokenizer does not hold the identifier tokens")
            index = _open_index(path, info)
            return cls(path, info, index, tokenizer, vocabulary, _encoder(info, index, tokenizer, vocabulary))

    def refreshed(self) -> Bundle:
        """Return this bundle with the version of the index that is current now, and the same weights and tokenizer.

        Raises `BundleError` if that version is damaged or does not belong to this bundle.
        """
        with refusing(self.path, "opened"):
            index = _open_index(self.path, self.info)
            return replace(
                self, index=index, encoder=_encoder(self.info, index, self.tokenizer, self.vocabulary)
            )

    def codebooks(self) -> Codebooks | None:
        """Return the codebooks that name later items; None if the identifier scheme has none."""
        folder = self.path / CODEBOOKS
        return Codebooks.open(folder) if folder.exists() else None

    def popularity(self) -> NDArray[np.int64] | None:
        """Return the interactions of each item in training: int64 [rows at that time], or None if not published.

        Raises `BundleError` if the file is damaged.
        """
        path = self.path / POPULARITY
        with refusing(self.path, "opened"):
            return read_array(path) if path.exists() else None

    def load_model(self, dtype: torch.dtype = torch.float32) -> PreTrainedModel:
        """Return the model, in evaluation mode."""
        return load_model(self.path, dtype)


def load_model(path: Path, dtype: torch.dtype = torch.float32) -> PreTrainedModel:
    """Return the model of the bundle at `path`, in evaluation mode."""
    return load_language_model(path, dtype, local=True)


def _open_index(path: Path, info: BundleInfo) -> ItemIndex:
    folder = Versions(path / INDEX).current()
    index = ItemIndex.open(folder)
    if index.bundle_id != info.bundle_id or index.version != folder.name:
        raise BundleError(f"{folder} belongs to another bundle or is another version")
    if index.trie.levels != len(info.codebook_sizes):
        raise BundleError(f"{folder}: the trie does not fit the bundle's codebooks")
    return index


def _encoder(
    info: BundleInfo, index: ItemIndex, tokenizer: PreTrainedTokenizerFast, vocabulary: IdentifierVocabulary
) -> SequenceEncoder:
    return SequenceEncoder(
        tokenizer,
        vocabulary,
        index.trie.codes(),
        max_tokens=info.max_tokens,
        max_events=info.max_events,
        max_query_tokens=info.max_query_tokens,
    )
