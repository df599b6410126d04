"""The bundle: one directory that a server can serve.

    config.json, model.safetensors, tokenizer.json ...   a plain Hugging Face checkpoint
    codebooks/codebooks.safetensors                       names later items (semantic identifiers)
    search_codebooks/codebooks.safetensors                the same, if searches have identifiers of their own
    popularity.npy                                        interactions of each item in training, if published
    bundle.json                                           its description: `BundleInfo`
    manifest.json                                         SHA-256 and size of every file above
    index/current.json, index/v1/, ...                    the items and their identifiers (`Versions`, `ItemIndex`)

A bundle is published as a whole (see `atomic_folder`): a reader sees no bundle or the complete one. After that only the
index changes, version by version. A damaged bundle is refused before any part of it is used, and the message names the
damaged file. A bundle holds no pickle and no remote code. The backbone's `generation_config.json` is not copied.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, field, fields, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray
from transformers import PreTrainedTokenizerFast

from index.bundle.consistency import (
    check_backbone,
    check_states,
    check_text,
    check_tokenizer,
    drop_code,
)
from index.bundle.item_index import ItemIndex
from index.bundle.manifest import MANIFEST, BundleError, refusing, sha256_of, verify, write_manifest
from index.bundle.versions import Versions
from index.catalogue import Catalogue
from index.files import atomic_folder, read_array
from index.identifiers.codebooks import Codebooks
from index.identifiers.identifiers import SPELLED, Identifiers
from index.pool.pool_index import PoolIndex
from index.records import Record
from index.sequence.encoder import SequenceEncoder
from index.sequence.events import Task
from index.sequence.vocabulary import IdentifierVocabulary

# torch and transformers' models take three seconds and 300 MB to import, and the API's process needs neither
if TYPE_CHECKING:
    import torch
    from transformers import PreTrainedModel

FORMAT_VERSION = 3
OF_EACH_TASK = 4  # format of a bundle with identifiers for each task: an older program would mix them up
MAX_TOKENS = 2**20  # of a prompt
MAX_CODES = 2**31 - 1  # of a level; token ids
INDEX = "index"
CODEBOOKS, SEARCH_CODEBOOKS = "codebooks", "search_codebooks"
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
    with the behaviour in the training data), `bi-encoder` (texts, by the encoder tuned on it), or empty for none.
    item_encoder, item_encoder_sha256: name or folder of the text encoder, and the hash of its files.
    data, training: free descriptions for people (data set, simulation notes, method, figures).
    format_version: `publish` sets it by the identifiers.
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
        """Read `bundle.json`. Raises `BundleError`, `RecordError` for another format version or a wrong field."""
        record = Record.read(path)
        version = record.fields.get("format_version")
        if version not in (FORMAT_VERSION, OF_EACH_TASK):
            raise BundleError(
                f"{path}: format version {version!r}; this program reads {FORMAT_VERSION} and {OF_EACH_TASK}"
            )
        record.require(*(f.name for f in fields(cls)))
        sizes = record.wholes("codebook_sizes", 1, MAX_CODES)
        if not sizes:
            raise BundleError(f"{path}: codebook_sizes holds no level")
        max_tokens = record.whole("max_tokens", 1, MAX_TOKENS)
        return cls(
            bundle_id=record.text("bundle_id"),
            scheme=record.text("scheme"),
            codebook_sizes=sizes,
            first_added_token=record.whole("first_added_token", 1, MAX_CODES),
            normalisation=record.one_of("normalisation", NORMALISATIONS),
            max_tokens=max_tokens,
            max_events=record.whole("max_events", 1, max_tokens),
            max_query_tokens=record.whole("max_query_tokens", 1, max_tokens),
            created=record.time("created"),
            code_version=record.text("code_version"),
            item_embeddings=record.text("item_embeddings", empty=True),
            item_encoder=record.text("item_encoder", empty=True),
            item_encoder_sha256=record.text("item_encoder_sha256", empty=True),
            data=record.mapping("data"),
            training=record.mapping("training"),
            format_version=record.whole("format_version", FORMAT_VERSION, OF_EACH_TASK),
        )

    def save(self, path: Path) -> None:
        """Write `bundle.json`. Raises `BundleError`, `RecordError` if `load` would refuse it."""
        path.write_text(json.dumps(asdict(self), indent=2) + "\n", "utf-8")
        self.load(path)

    @property
    def of_each_task(self) -> bool:
        """Whether searches have identifiers of their own."""
        return self.format_version == OF_EACH_TASK

    def vocabulary(self) -> IdentifierVocabulary:
        """Return the vocabulary of the tokens that were added to its tokenizer."""
        return IdentifierVocabulary(
            self.first_added_token, self.codebook_sizes, spelled=self.scheme == SPELLED
        )


def read_info(path: Path) -> BundleInfo:
    """Read the description of the bundle at `path`, and check that its backbone fits. Raises `BundleError`."""
    with refusing(path, "opened"):
        info = BundleInfo.load(path / "bundle.json")
        check_backbone(path, info.vocabulary(), info.max_tokens)
        return info


def publish(
    target: Path,
    *,
    model: PreTrainedModel,
    tokenizer: PreTrainedTokenizerFast,
    catalogue: Catalogue,
    identifiers: Identifiers,
    info: BundleInfo,
    popularity: NDArray[np.integer] | None = None,
    pool: PoolIndex | None = None,
    removed: Sequence[int] = (),
) -> None:
    """Write a bundle to `target`: all of it or nothing.

    target: must not exist yet.
    popularity: int [items], interactions of each item. A server cannot answer by popularity without it.
    pool: index of the pool. Without it the beam alone ranks.
    removed: rows of items that are known from histories, and never returned.
    Raises `BundleError` if `target` exists, the parts do not fit each other, or the disk is full.
    """
    if target.exists():
        raise BundleError(f"{target} exists already; publish to a new folder or remove it first")
    own = identifiers.search_codes is not None
    info = replace(info, format_version=OF_EACH_TASK if own else FORMAT_VERSION)
    try:
        with atomic_folder(target) as draft:
            (draft / INDEX).mkdir()
            versions = Versions(draft / INDEX)
            first = versions.next_name()
            index = ItemIndex.build(
                info.bundle_id, first, info.created, catalogue, identifiers.codes, removed, pool,
                identifiers.search_codes,
            )  # fmt: skip
            versions.publish(first, index.save)
            model.save_pretrained(draft)
            (draft / "generation_config.json").unlink(missing_ok=True)
            tokenizer.save_pretrained(draft)
            drop_code(draft)
            check_backbone(draft, info.vocabulary(), info.max_tokens)
            check_tokenizer(draft, tokenizer, info.vocabulary())
            if identifiers.codebooks is not None:
                identifiers.codebooks.save(draft / CODEBOOKS)
            if identifiers.search_codebooks is not None:
                identifiers.search_codebooks.save(draft / SEARCH_CODEBOOKS)
            if popularity is not None:
                np.save(draft / POPULARITY, popularity.astype(np.int64))
            info.save(draft / "bundle.json")
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
            info = read_info(path)
            vocabulary = info.vocabulary()
            # of any class: the file holds all that the class of the backbone's tokenizer has set up
            tokenizer = PreTrainedTokenizerFast.from_pretrained(path, local_files_only=True)
            check_tokenizer(path, tokenizer, vocabulary)
            index = _open_index(path, info)
            check_text(tokenizer, vocabulary, index.catalogue.titles)
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

    def sha256(self) -> str:
        """Return one hash of all files of the bundle and of its index version: that of their manifests."""
        manifests = (self.path / MANIFEST, self.path / INDEX / self.index.version / MANIFEST)
        return hashlib.sha256("".join(map(sha256_of, manifests)).encode()).hexdigest()

    def codebooks(self, task: Task = Task.RECOMMENDATION) -> Codebooks | None:
        """Return the codebooks that name later items for a task; None if the identifier scheme has none.

        Raises `BundleError` if they are damaged or do not fit the identifiers.
        """
        of_search = self.info.of_each_task and task is Task.SEARCH
        folder = self.path / (SEARCH_CODEBOOKS if of_search else CODEBOOKS)
        if not folder.exists():
            return None
        with refusing(folder, "opened"):
            codebooks = Codebooks.open(folder)
            sizes = self.info.codebook_sizes[:-1]  # the last level separates collisions
            # of two kinds of codes on a level, those of searches come first
            fits = codebooks.ends == sizes or (
                of_search
                and len(codebooks.ends) == len(sizes)
                and all(end <= size for end, size in zip(codebooks.ends, sizes, strict=True))
            )
            if not fits:
                raise BundleError(f"{folder}: the codebooks do not fit the codebook_sizes of bundle.json")
            return codebooks

    def popularity(self) -> NDArray[np.int64] | None:
        """Return the interactions of each item in training: int64 [rows at that time], or None if not published.

        Raises `BundleError` if the file is damaged.
        """
        path = self.path / POPULARITY
        if not path.exists():
            return None
        with refusing(path, "opened"):
            counts = read_array(path, np.int64)
            if len(counts) > len(self.index.catalogue) or (len(counts) and counts.min() < 0):
                raise BundleError(f"{path} does not hold one count, at least 0, for each of the first items")
            return counts

    def load_model(self, dtype: torch.dtype | None = None) -> PreTrainedModel:
        """Return the model, in evaluation mode. dtype: None: float32. Raises `BundleError` if it cannot be loaded."""
        with refusing(self.path, "opened"):
            return load_model(self.path, dtype)


def load_model(path: Path, dtype: torch.dtype | None = None) -> PreTrainedModel:
    """Return the model of the bundle at `path`, in evaluation mode.

    dtype: None: float32.
    Raises `LanguageModelError` if the weights are not those that `config.json` describes; any other error of
    transformers goes to the caller.
    """
    from index.sequence.language_model import load_language_model  # see above

    return load_language_model(path, dtype, local=True)


def _open_index(path: Path, info: BundleInfo) -> ItemIndex:
    folder = Versions(path / INDEX).current()
    index = ItemIndex.open(folder)
    if index.bundle_id != info.bundle_id or index.version != folder.name:
        raise BundleError(f"{folder} belongs to another bundle or is another version")
    if info.of_each_task != (index.search_names is not None):
        raise BundleError(
            f"{folder} and bundle.json differ in whether searches have identifiers of their own"
        )
    if any(names.trie.levels != len(info.codebook_sizes) for names in index.every_names):
        raise BundleError(f"{folder}: the trie does not fit the bundle's codebooks")
    if index.pool is not None and index.pool.dense is not None:
        check_states(path, index.pool.dense.head.state.shape[1])
    return index


def _encoder(
    info: BundleInfo, index: ItemIndex, tokenizer: PreTrainedTokenizerFast, vocabulary: IdentifierVocabulary
) -> SequenceEncoder:
    # in a history, a new item with the code of another one would mean that one
    known = ~index.pool.fresh if vocabulary.one_code and index.pool is not None else None
    return SequenceEncoder(
        tokenizer,
        vocabulary,
        index.trie.codes(),
        search_codes=index.search_codes,
        known=known,
        max_tokens=info.max_tokens,
        max_events=info.max_events,
        max_query_tokens=info.max_query_tokens,
    )
