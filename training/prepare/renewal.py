"""A bundle that a training goes on from: its items, identifiers and weights stay, and new items join them.

The catalogue of the run begins with the bundle's items, row by row, and the new ones follow in the order of the data
set. So a row, an identifier and a token mean the same item before and after. Items of the bundle that the data set
lacks keep all three, and are removed: histories may hold them, answers do not. What was removed from the bundle stays
removed.
"""

from __future__ import annotations

import copy
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np
from numpy.typing import NDArray
from rich.console import Console
from transformers import PreTrainedModel, PreTrainedTokenizerFast

from index.bundle.bundle import Bundle
from index.bundle.naming import names_of
from index.catalogue import Catalogue, Item
from index.files import atomic_folder
from index.identifiers.identifiers import IdentifierError, Identifiers
from index.identifiers.schemes.atomic import ATOMIC_LIMIT
from index.sequence.events import Task
from index.sequence.vocabulary import IdentifierVocabulary
from training.config import TrainConfig
from training.data.dataset import DataSet
from training.data.item_vectors import ItemVectorError, VectorOrigin, VectorSource, vector_source
from training.errors import UserError
from training.model.growth import grow_backbone
from training.prepare.preparation import save_prepared
from training.prepare.renewed_settings import check_fixed, renewed_settings


class RenewalError(UserError):
    """A training cannot go on from this bundle. The message says why, and what to do."""


@dataclass(frozen=True, eq=False)
class Renewal:
    """The bundle that a training goes on from.

    sha256: hash of all its files, which a resumed run must find again.
    """

    bundle: Bundle
    sha256: str

    @classmethod
    def open(cls, path: Path) -> Renewal:
        """Check and open a bundle. Raises `BundleError` if it is not complete and undamaged."""
        bundle = Bundle.open(path)
        return cls(bundle, bundle.sha256())

    @property
    def record(self) -> dict[str, str]:
        """The facts that a run records of the bundle."""
        return {"bundle": str(self.bundle.path), "bundle_sha256": self.sha256}

    def summary(self, catalogue: Catalogue, removed: Sequence[int]) -> str:
        """Return a sentence for people. catalogue, removed: of the run."""
        known = len(self.bundle.index.catalogue)
        return (
            f"goes on from {self.bundle.info.bundle_id}: {known:,} items keep their identifiers, "
            f"{len(catalogue) - known:,} are new, {len(removed):,} are not answered"
        )

    def settings(
        self, source: str | Path | None, overrides: dict[str, object], recipe: str | None = None
    ) -> TrainConfig:
        """Return the settings of the training, see `renewed_settings`. Raises `ConfigError`."""
        return renewed_settings(self.bundle, source, overrides, recipe)

    def check(self, config: TrainConfig, dataset: DataSet) -> None:
        """Raise an error if settings or data do not fit the bundle. dataset: as it was loaded."""
        check_fixed(self.bundle, config)
        known = self.bundle.index.catalogue
        ids = dataset.catalogue.item_ids
        new = [item_id for item_id in ids if known.row(item_id) is None]
        if len(new) == len(ids):
            raise RenewalError(
                f"{self.bundle.path} holds none of the {len(ids):,} items of {dataset.info.name!r} ({ids[0]!r}, …): it "
                "is of another catalogue. Go on from a bundle of these items, or train from nothing without --from"
            )
        if self.bundle.vocabulary.one_code and len(known) + len(new) > ATOMIC_LIMIT:
            raise IdentifierError(
                f"{len(known):,} items and {len(new):,} new ones are too many for atomic identifiers; train from "
                "nothing with semantic ones"
            )

    def on_items(self, dataset: DataSet) -> DataSet:
        """Return the data set on the catalogue of the run: the bundle's items, then the new ones.

        An item that both have is as the data set has it.
        """
        known, given = self.bundle.index.catalogue, dataset.catalogue

        def newest(item: Item) -> Item:
            row = given.row(item.item_id)
            return item if row is None else given[row]

        new = [item for item in given if known.row(item.item_id) is None]
        return dataset.on(Catalogue([*map(newest, known), *new]))

    def removed(self, dataset: DataSet) -> list[int]:
        """Return the rows of items that answers must not hold. dataset: as it was loaded."""
        index = self.bundle.index
        gone = {
            row for row, item in enumerate(index.catalogue) if dataset.catalogue.row(item.item_id) is None
        }
        return sorted(gone | set(index.removed))

    def knows(self, row: int) -> bool:
        """Whether the bundle's model knows an item by its identifier. row: in the catalogue of the run."""
        return row < len(self.bundle.index.catalogue) and self.bundle.encoder.reads(row)

    def source(self, config: TrainConfig, catalogue: Catalogue, beside: Path, device: str) -> VectorSource:
        """Return the source of item vectors, which must be the bundle's.

        catalogue: of the run.
        beside, device: as in `vector_source`.
        Raises `ItemVectorError` and what `vector_source` raises.
        """
        info, file = self.bundle.info, config.identifiers.vectors
        if info.item_encoder and file is not None:
            raise ItemVectorError(
                f"the item vectors of {self.bundle.path} come from texts, by the encoder {info.item_encoder!r}: leave "
                "out --identifiers.vectors"
            )
        if info.item_embeddings and not info.item_encoder and file is None:
            raise ItemVectorError(
                f"the item vectors of {self.bundle.path} came from a file: give those of all its items, and of the new "
                "ones, with --identifiers.vectors FILE"
            )
        source = vector_source(config, catalogue, beside=beside, device=device)
        if info.item_encoder_sha256 not in ("", source.origin.encoder_sha256):
            raise ItemVectorError(
                f"{config.identifiers.encoder} is not the encoder of {self.bundle.path} ({info.item_encoder!r}): its "
                "files are others. Name the right one with --identifiers.encoder"
            )
        embeddings = info.item_embeddings or source.origin.embeddings
        return replace(
            source, origin=VectorOrigin(embeddings, source.origin.encoder, source.origin.encoder_sha256)
        )

    def prepare(self, folder: Path, catalogue: Catalogue, source: VectorSource, console: Console) -> None:
        """Name the new items, give them rows, and write `folder` as `training.prepare.preparation` does.

        catalogue: of the run.
        Raises `IdentifierError` for an item that cannot be named.
        """
        with atomic_folder(folder, single_writer=True, replace=True) as draft:
            vectors = source.make(console).vectors
            with console.status("identifiers of new items"):
                identifiers = self._identifiers(catalogue, vectors)
                model, tokenizer, vocabulary = self._backbone(identifiers, vectors)
            save_prepared(draft, identifiers, vocabulary, model, tokenizer, source.origin, vectors)

    def _identifiers(self, catalogue: Catalogue, vectors: NDArray[np.float32]) -> Identifiers:
        index, info = self.bundle.index, self.bundle.info
        codes, sizes = index.trie.codes(), info.codebook_sizes
        searched = index.search_codes
        known = len(codes)
        if self.bundle.vocabulary.one_code:
            codes = _own_codes(codes, len(catalogue), sizes[0])
            sizes = (max(sizes[0], int(codes.max()) + 1),)
        elif known < len(catalogue):
            places = {item.item_id: row for row, item in enumerate(catalogue)}

            def embed(items: Sequence[Item]) -> NDArray[np.float32]:
                return vectors[[places[item.item_id] for item in items]]

            new = [catalogue[row] for row in range(known, len(catalogue))]
            codes = np.concatenate([codes, names_of(new, codes, self.bundle, index.pool, embed)])
            if searched is not None:
                named = names_of(new, searched, self.bundle, index.pool, embed, Task.SEARCH)
                searched = np.concatenate([searched, named])
        identifiers = Identifiers(info.scheme, codes.astype(np.int32), sizes, self.bundle.codebooks())
        if searched is None:
            return identifiers
        of_search = self.bundle.codebooks(Task.SEARCH)
        return replace(identifiers, search_codes=searched.astype(np.int32), search_codebooks=of_search)

    def _backbone(
        self, identifiers: Identifiers, vectors: NDArray[np.float32]
    ) -> tuple[PreTrainedModel, PreTrainedTokenizerFast, IdentifierVocabulary]:
        before = self.bundle.vocabulary
        after = replace(before, codebook_sizes=identifiers.codebook_sizes)
        model, tokenizer = self.bundle.load_model(), copy.deepcopy(self.bundle.tokenizer)
        if after != before:
            in_order = np.zeros((after.codebook_sizes[0], vectors.shape[1]), np.float32)
            in_order[identifiers.codes[:, 0]] = vectors
            grow_backbone(model, tokenizer, before, after, in_order)
        return model, tokenizer, after


def _own_codes(codes: NDArray[np.int64], items: int, size: int) -> NDArray[np.int64]:
    """Return a code of its own for each item: [known, 1] → int64 [items, 1].

    Items that joined the bundle after its training share the code of another one; they get new codes, as new items do.

    size: number of codes that the model knows.
    """
    own = np.zeros(items, bool)
    own[np.unique(codes[:, 0], return_index=True)[1]] = True  # the first item of a code was trained with it
    found = np.empty((items, 1), np.int64)
    found[own] = codes[own[: len(codes)]]
    found[~own, 0] = size + np.arange((~own).sum())
    return found
