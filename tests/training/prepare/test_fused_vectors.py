"""`gems train --identifiers.embeddings alphafuse`: identifiers from vectors that combine texts and behaviour."""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from numpy.typing import NDArray
from rich.console import Console
from safetensors.torch import load_file
from support.walks import COLOURS, THINGS, make_data, settings
from typer.testing import CliRunner

from index.bundle.bundle import Bundle
from index.catalogue import Catalogue, Item
from index.identifiers.alphafuse import SemanticSpace
from index.identifiers.schemes.semantic import semantic_identifiers
from index.sequence.events import Event
from training.cli.app import app
from training.config import ConfigError, TrainConfig
from training.data.dataset import DataSet
from training.data.histories import UserHistory
from training.data.item_vectors import ItemVectorError
from training.data.splits import leave_one_out
from training.data.vectors import read_vectors, save_vectors
from training.pipeline import train
from training.prepare.fused_vectors import LANGUAGE, MEANING, fused_source
from training.prepare.preparation import open_prepared
from training.run.run_folder import RunError

QUIET = Console(quiet=True)
FUSED: dict[str, Any] = {
    "identifiers": {"embeddings": "alphafuse", "fused_hidden": 16, "fused_epochs": 60},
    "optimiser.epochs": 1,
    "validation": {"conflict_cases": 0, "cases": 10},
}
WIDTH = 20


def language_of(catalogue: Catalogue) -> NDArray[np.float32]:
    """Return vectors that encode colour and thing of "red hat", with noise by title: float32 [N, 20]."""
    words = {w: np.random.default_rng(k).standard_normal(WIDTH) for k, w in enumerate((*COLOURS, *THINGS))}
    rows = [
        sum(words.get(word, np.zeros(WIDTH)) for word in item.title.split())
        + 0.1 * np.random.default_rng(len(item.title) + 31 * k).standard_normal(WIDTH)
        for k, item in enumerate(catalogue)
    ]
    return np.array(rows, np.float32)


def with_strangers(data: DataSet) -> DataSet:
    """Return the same data with two items that nobody has chosen."""
    strangers = [Item("unchosen-hat", "red hat unchosen"), Item("unchosen-coat", "blue coat unchosen")]
    return DataSet(data.info, Catalogue([*data.catalogue, *strangers]), data.users)


@pytest.fixture(scope="module")
def data(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("data")
    with_strangers(DataSet.load(make_data(folder / "walks", users=60))).save(folder / "data")
    return folder / "data"


@pytest.fixture(scope="module")
def language(data: Path) -> Path:
    catalogue = DataSet.load(data).catalogue
    save_vectors(data.parent / "language.parquet", catalogue.item_ids, language_of(catalogue))
    return data.parent / "language.parquet"


@pytest.fixture(scope="module")
def config(language: Path) -> TrainConfig:
    return settings(FUSED, {"identifiers.vectors": language})


@pytest.fixture(scope="module")
def run(data: Path, config: TrainConfig, tmp_path_factory: pytest.TempPathFactory) -> Path:
    out = tmp_path_factory.mktemp("runs") / "run"
    assert train(data, out, config, console=QUIET) is not None
    return out


def meaning(vectors: NDArray[np.float32], of: NDArray[np.float32] | None = None) -> NDArray[np.float64]:
    """Project vectors on the eight leading principal components of `of`: float64 [N, 8]."""
    space = SemanticSpace.of(vectors if of is None else of, semantic=8)
    return (vectors - space.mean) @ space.row_space


def fused_folder(run: Path) -> Path:
    (found,) = run.glob("fused-*")
    return found


def replace_events(user: UserHistory, events: tuple[Event, ...]) -> UserHistory:
    return UserHistory(
        user.user_id, events, user.simulated_queries[: len(events)], user.timestamps[: len(events)]
    )


def fuse(data: Path, config: TrainConfig, beside: Path) -> tuple[NDArray[np.float32], list[float]]:
    """Return the fused vectors, and the loss of each epoch."""
    dataset = DataSet.load(data)
    source = fused_source(config, data, dataset, leave_one_out(dataset), beside, QUIET)
    vectors = source.make(QUIET).vectors
    log = (fused_folder(beside.parent) / "sasrec" / "metrics.jsonl").read_text().splitlines()
    return vectors, [json.loads(line)["loss"] for line in log][1:]


def test_identifiers_are_codes_of_the_fused_vectors_and_the_run_and_the_bundle_say_so(
    run: Path, data: Path, language: Path
) -> None:
    catalogue = DataSet.load(data).catalogue
    used = np.load(run / "prepared" / "item_vectors.npy")
    exported = read_vectors(fused_folder(run) / "sasrec" / "item_vectors.parquet", catalogue.item_ids)
    assert used.shape == (32, 16)
    assert np.allclose(used[:, :8], meaning(read_vectors(language, catalogue.item_ids)), atol=1e-5)
    factor = used[0, 8] / exported[0, 8]
    assert np.allclose(used[:30, 8:], factor * exported[:30, 8:], rtol=1e-5)
    assert used[:, :8].var(0).sum() == pytest.approx(MEANING * used[:30, 8:].var(0).sum(), rel=1e-4)
    learned = used[:30, 8:] / np.linalg.norm(used[:30, 8:], axis=1, keepdims=True)
    cosines, colour = learned @ learned.T, np.arange(30) // 5
    alike = (colour[:, None] == colour) & ~np.eye(30, dtype=bool)
    # People who like red choose red.
    assert cosines[alike].mean() > cosines[colour[:, None] != colour].mean() + 0.1
    bundle = Bundle.open(run / "bundle")
    assert (bundle.info.item_embeddings, bundle.info.item_encoder) == ("alphafuse", "")
    assert "embeddings: alphafuse" in (run / "config.yaml").read_text()
    assert np.array_equal(
        bundle.index.trie.codes(), open_prepared(run / "prepared", "semantic").identifiers.codes
    )
    alone = settings(FUSED, {"identifiers": {"embeddings": "text", "vectors": language}})
    train(data, run.parent / "text", alone, console=QUIET)
    by_text = open_prepared(run.parent / "text" / "prepared", "semantic").identifiers.codes
    assert not np.array_equal(by_text[:, :-1], bundle.index.trie.codes()[:, :-1])


def test_items_that_nobody_chose_have_no_learned_part_and_are_named_as_later_ones_are(
    run: Path, data: Path, language: Path, tmp_path: Path
) -> None:
    used = np.load(run / "prepared" / "item_vectors.npy")
    assert np.array_equal(used[30:, 8:], np.zeros((2, 8), np.float32))
    path = Path(shutil.copytree(run / "bundle", tmp_path / "bundle"))
    bundle = Bundle.open(path)
    codebooks = bundle.codebooks()
    assert codebooks is not None
    texts = read_vectors(language, DataSet.load(data).catalogue.item_ids)
    assert np.array_equal(codebooks.quantise(texts)[30:], bundle.index.trie.codes()[30:, :-1])
    later = np.random.default_rng(5).standard_normal((3, WIDTH)).astype(np.float32)
    by_hand = np.pad(meaning(later, texts), ((0, 0), (0, 8))).astype(np.float32)
    fused = semantic_identifiers(used, (4, 4)).codebooks  # as they were fitted
    assert fused is not None
    assert np.allclose(codebooks.encode(later), fused.encode(by_hand), atol=1e-3)
    assert np.array_equal(codebooks.quantise(later), fused.quantise(by_hand))
    (tmp_path / "items.jsonl").write_text(
        "".join(json.dumps({"item_id": f"new-{k}", "title": f"new {k}"}) + "\n" for k in range(3))
    )
    np.save(tmp_path / "vectors.npy", later)
    options = ["--items", str(tmp_path / "items.jsonl")]
    refused = CliRunner().invoke(app, ["index", "update", str(path), *options])
    assert "--vectors FILE" in str(refused.exception)
    done = CliRunner().invoke(
        app, ["index", "update", str(path), *options, "--vectors", str(tmp_path / "vectors.npy")]
    )
    assert "3 items added" in done.output
    assert np.array_equal(Bundle.open(path).index.trie.codes()[32:, :-1], codebooks.quantise(later))


def test_nothing_that_is_held_out_is_learned_from(data: Path, config: TrainConfig, tmp_path: Path) -> None:
    """Other test events give the same vectors. Other validation events give the same losses, up to the last epoch.

    Another training event gives other vectors and losses.
    """
    config = TrainConfig.combined(config.model_dump(), {"identifiers.fused_epochs": 12})
    vectors, losses = fuse(data, config, tmp_path / "as-it-is" / "prepared")
    dataset = DataSet.load(data)

    def changed(name: str, *positions: int) -> tuple[NDArray[np.float32], list[float]]:
        users = []
        for user in dataset.users:
            events = list(user.events)
            for position in positions:
                events[position] = Event((events[position].item + 11) % 30)
            users.append(replace_events(user, tuple(events)))
        DataSet(dataset.info, dataset.catalogue, users).save(tmp_path / name / "data")
        return fuse(tmp_path / name / "data", config, tmp_path / name / "prepared")

    assert len(losses) == 12
    assert losses[-1] < losses[0] - 0.5
    without_test, _ = changed("test", -1)
    assert np.array_equal(without_test, vectors)
    _, same = changed("validation", -1, -2)
    assert len(same) >= 5  # it may stop at another epoch
    assert same == losses[: len(same)]
    _, other = changed("training", -3)
    assert other[0] != losses[0]


def test_a_run_that_is_stopped_while_it_fuses_goes_on_to_the_same_weights(
    run: Path, data: Path, config: TrainConfig, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    saved, done = torch.save, []

    def stop_after_three(content: object, file: Path) -> None:
        saved(content, file)
        done.append(file)
        if len(done) == 3:
            raise KeyboardInterrupt

    monkeypatch.setattr(torch, "save", stop_after_three)
    with pytest.raises(KeyboardInterrupt):
        train(data, tmp_path / "run", config, console=QUIET)
    monkeypatch.undo()
    assert (tmp_path / "run" / "config.yaml").exists()
    assert not (tmp_path / "run" / "prepared" / "codes.npz").exists()
    with pytest.raises(RunError, match="--resume"):
        train(data, tmp_path / "run", config, console=QUIET)
    assert train(data, tmp_path / "run", config, resume=True, console=QUIET) is not None
    log = (fused_folder(tmp_path / "run") / "sasrec" / "metrics.jsonl").read_text().splitlines()
    assert [json.loads(line)["step"] for line in log] == list(range(61))  # no epoch twice
    ours, theirs = (load_file(folder / "bundle" / "model.safetensors") for folder in (run, tmp_path / "run"))
    assert all(torch.equal(ours[name], theirs[name]) for name in ours)


def test_a_finished_fusion_is_found_by_its_hash(
    run: Path, data: Path, config: TrainConfig, tmp_path: Path
) -> None:
    folder = Path(shutil.copytree(fused_folder(run), tmp_path / fused_folder(run).name))
    weights = folder / "sasrec" / "weights.safetensors"
    before = weights.stat().st_mtime_ns
    vectors, _ = fuse(data, config, tmp_path / "prepared")
    assert np.array_equal(vectors, np.load(run / "prepared" / "item_vectors.npy"))
    assert weights.stat().st_mtime_ns == before
    dataset = DataSet.load(data)
    for changes in ({"seed": 1}, {"identifiers.fused_hidden": 12}, {}):
        other = TrainConfig.combined(config.model_dump(), {"identifiers.fused_epochs": 3}, changes)
        fused_source(other, data, dataset, leave_one_out(dataset), tmp_path / "prepared", QUIET).make(QUIET)
    assert len(list(tmp_path.glob("fused-*"))) == 4
    assert {p.name for p in folder.iterdir()} == {".lock", LANGUAGE, "sasrec"}


def test_what_cannot_be_fused_is_said_before_anything_is_written(
    data: Path, language: Path, tmp_path: Path
) -> None:
    def refused(**changes: object) -> str:
        with pytest.raises(ItemVectorError) as caught:
            train(data, tmp_path / "run", settings(FUSED, {"identifiers": changes}), console=QUIET)
        assert not (tmp_path / "run").exists()
        assert "--identifiers.embeddings alphafuse with --identifiers.fused-hidden" in str(caught.value)
        return str(caught.value)

    assert "32 items are too few for language vectors of 384 dimensions" in refused()
    assert "no room for more than as many" in refused(vectors=language, fused_hidden=22)
    assert "leaves no null space" in refused(vectors=language, fused_hidden=40)
    np.save(tmp_path / "same.npy", np.ones((32, 8), np.float32))
    assert "no variance" in refused(vectors=tmp_path / "same.npy", fused_hidden=4)
    users = [replace_events(user, user.events[:3]) for user in DataSet.load(data).users]
    DataSet(DataSet.load(data).info, DataSet.load(data).catalogue, users).save(tmp_path / "short")
    with pytest.raises(ItemVectorError, match="nobody has two training events"):
        train(
            tmp_path / "short",
            tmp_path / "run",
            settings(FUSED, {"identifiers.vectors": language}),
            console=QUIET,
        )
    assert not (tmp_path / "run").exists()
    with pytest.raises(ConfigError, match=r"fused_hidden: .* multiple of 2"):
        TrainConfig.load(None, {"identifiers.fused_hidden": 15})
    with pytest.raises(ConfigError, match=r"'alphafuse' is for semantic identifiers; atomic ones"):
        TrainConfig.load(None, {"identifiers": {"embeddings": "alphafuse", "scheme": "atomic"}})


def test_texts_are_fused_and_later_items_are_named_by_their_texts_alone(tmp_path: Path) -> None:
    """MiniLM's 384 dimensions need more items than the other tests have."""
    dataset = DataSet.load(make_data(tmp_path / "walks", users=60))
    more = [Item(f"{c}-{t}-{k}", f"{c} {t} number {k}") for k in range(13) for c in COLOURS for t in THINGS]
    DataSet(dataset.info, Catalogue([*dataset.catalogue, *more]), dataset.users).save(tmp_path / "data")
    config = settings(FUSED, {"identifiers.fused_epochs": 1})
    bundle = Bundle.open(train(tmp_path / "data", tmp_path / "run", config, console=QUIET) or Path())
    assert (bundle.info.item_embeddings, bundle.info.item_encoder) == ("alphafuse", "minilm")
    assert bundle.info.item_encoder_sha256
    (tmp_path / "new.jsonl").write_text(json.dumps({"item_id": "new", "title": "red hat number 3"}) + "\n")
    done = CliRunner().invoke(
        app, ["index", "update", str(bundle.path), "--items", str(tmp_path / "new.jsonl")]
    )
    assert "1 items added" in done.output, done.output
    codes = bundle.refreshed().index.trie.codes()
    twin = bundle.index.catalogue.row("red-hat-3")
    assert np.array_equal(codes[-1, :-1], codes[twin, :-1])  # the same text, and nobody chose either of them
