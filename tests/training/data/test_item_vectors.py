"""Item vectors from source to bundle, and new items that are embedded in the same way."""

from __future__ import annotations

import shutil
from pathlib import Path

import numpy as np
import polars as pl
import pytest
from rich.console import Console
from support.walks import make_data, settings
from typer.testing import CliRunner

from index.bundle.bundle import Bundle
from index.bundle.update import update_index
from index.catalogue import Catalogue, Item
from index.embeddings import EmbeddingError
from index.identifiers.identifiers import IdentifierError
from training.cli.app import app
from training.config import TrainConfig
from training.data import assets
from training.data.dataset import DataSet
from training.data.item_vectors import ItemVectorError, encoder_folder, new_item_vectors, vector_source
from training.data.vectors import VectorFileError
from training.pipeline import train

NEW = [Item("new-hat", "purple hat"), Item("new-coat", "purple coat")]


@pytest.fixture(scope="module")
def data(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return make_data(tmp_path_factory.mktemp("data") / "walks", users=20)


def trained(data: Path, out: Path, **identifiers: object) -> Path:
    short = {"optimiser.epochs": 1, "validation": {"cases": 10, "conflict_cases": 0}}
    config = settings(short, {"identifiers": identifiers})
    bundle = train(data, out, config, console=Console(quiet=True))
    assert bundle is not None
    return bundle


@pytest.fixture(scope="module")
def by_file(data: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("file")
    ids = [item.item_id for item in DataSet.load(data).catalogue]
    vectors = np.random.default_rng(0).normal(size=(len(ids), 12))
    pl.DataFrame({"item_id": ids[::-1], "vector": vectors[::-1].tolist()}).write_parquet(folder / "v.parquet")
    np.save(folder / "v.npy", vectors)
    return trained(data, folder / "run", vectors=folder / "v.parquet", quantiser="rqvae")


def test_vectors_from_a_file_are_those_of_the_items(by_file: Path) -> None:
    bundle = Bundle.open(by_file)
    codebooks = bundle.codebooks()
    assert codebooks is not None
    assert len(codebooks.encoder) == 2  # of an RQ-VAE
    vectors = np.load(by_file.parents[1] / "v.npy").astype(np.float32)
    assert np.array_equal(codebooks.quantise(vectors), bundle.index.trie.codes()[:, :-1])
    assert (bundle.info.item_embeddings, bundle.info.item_encoder) == ("file", "")


def test_new_items_of_such_a_bundle_bring_their_vectors(by_file: Path, tmp_path: Path) -> None:
    path = Path(shutil.copytree(by_file, tmp_path / "bundle"))
    bundle = Bundle.open(path)
    changed = bundle.index.catalogue[3]
    given = [NEW[0], Item(changed.item_id, "another title"), NEW[1]]
    with pytest.raises(ItemVectorError, match=r"2 items are new, .* --vectors FILE"):
        update_index(bundle, given, [], new_item_vectors(bundle.info, given))
    vectors = np.random.default_rng(1).normal(size=(3, 12)).astype(np.float32)
    np.save(tmp_path / "short.npy", vectors[:2])
    with pytest.raises(VectorFileError, match="2 vectors for 3 items"):
        update_index(bundle, given, [], new_item_vectors(bundle.info, given, tmp_path / "short.npy"))
    np.save(tmp_path / "narrow.npy", vectors[:, :5])
    with pytest.raises(IdentifierError, match="5 dimensions cannot be named: the codebooks are of 12"):
        update_index(bundle, given, [], new_item_vectors(bundle.info, given, tmp_path / "narrow.npy"))
    assert Bundle.open(path).index.version == "v1"
    np.save(tmp_path / "new.npy", vectors)
    (tmp_path / "items.jsonl").write_text(
        "".join(f'{{"item_id": "{i.item_id}", "title": "{i.title}"}}\n' for i in given)
    )
    alone = CliRunner().invoke(app, ["index", "update", str(path), "--remove", "x", "--vectors", "y.npy"])
    assert "--vectors are those of the items in --items" in str(alone.exception)
    options = ["--items", str(tmp_path / "items.jsonl"), "--vectors", str(tmp_path / "new.npy")]
    done = CliRunner().invoke(app, ["index", "update", str(path), *options])
    assert done.exit_code == 0
    assert "2 items added, 1 changed" in done.output
    codebooks = bundle.codebooks()
    assert codebooks is not None
    codes = Bundle.open(path).index.trie.codes()[-2:, :-1]
    assert np.array_equal(codes, codebooks.quantise(vectors[[0, 2]]))


def test_new_items_are_embedded_by_the_encoder_of_the_bundle_and_by_no_other(
    data: Path, tmp_path: Path
) -> None:
    encoder = Path(shutil.copytree(assets.fetch("minilm"), tmp_path / "encoder"))
    bundle = Bundle.open(trained(data, tmp_path / "run", encoder=str(encoder)))
    assert (bundle.info.item_embeddings, bundle.info.item_encoder) == ("text", str(encoder))
    encoder.rename(tmp_path / "moved")
    with pytest.raises(ItemVectorError, match="is not available"):
        update_index(bundle, NEW, [], new_item_vectors(bundle.info, NEW))
    with (tmp_path / "moved" / "vocab.txt").open("a") as file:
        file.write("another\n")
    with pytest.raises(EmbeddingError, match="is not the encoder of this bundle"):
        update_index(bundle, NEW, [], new_item_vectors(bundle.info, NEW, encoder=str(tmp_path / "moved")))
    with pytest.raises(ItemVectorError, match="--vectors is for bundles whose item vectors came from a file"):
        new_item_vectors(bundle.info, NEW, tmp_path / "v.npy")
    with pytest.raises(EmbeddingError, match=r"item 'bare' \(row 1\) has no text"):
        update_index(bundle, [Item("bare", " ")], [], new_item_vectors(bundle.info, [], encoder="minilm"))
    assert update_index(bundle, NEW, [], new_item_vectors(bundle.info, NEW, encoder="minilm")).added == 2


def test_an_encoder_is_found_by_its_name_in_the_hub_cache(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    repository = tmp_path / "hub" / "models--acme--tiny"
    snapshot = repository / "snapshots" / "0123456789abcdef0123456789abcdef01234567"
    shutil.copytree(assets.fetch("minilm"), snapshot)
    (repository / "refs").mkdir()
    (repository / "refs" / "main").write_text(snapshot.name)
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_CACHE", str(tmp_path / "hub"))
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", True)
    assert encoder_folder("acme/tiny") == snapshot
    with pytest.raises(ItemVectorError, match="'acme/other' is not available"):
        encoder_folder("acme/other")


def test_sources_that_cannot_be_are_refused_before_anything_is_written(data: Path, tmp_path: Path) -> None:
    with pytest.raises(ItemVectorError, match="'no such encoder' is not available"):
        encoder_folder("no such encoder")
    np.save(tmp_path / "v.npy", np.ones((7, 3)))
    with pytest.raises(VectorFileError, match="7 vectors for 30 items"):
        trained(data, tmp_path / "run", vectors=tmp_path / "v.npy")
    assert not (tmp_path / "run").exists()
    with pytest.raises(EmbeddingError, match=r"item 'b' \(row 2\) has no text"):
        vector_source(TrainConfig(), Catalogue([Item("a", "title"), Item("b", "  ")]))
