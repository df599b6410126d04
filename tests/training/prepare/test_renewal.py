"""`gems train --from BUNDLE`: what the bundle knows stays, new items join it, and wrong bundles are refused."""

from __future__ import annotations

import os
import shutil
import signal
import threading
import time
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from rich.console import Console
from safetensors.torch import load_file
from support.walks import COLOURS, THINGS, make_data, settings
from typer.testing import CliRunner

from gems import KnowledgeBasis
from index.bundle.bundle import Bundle
from index.bundle.update import update_index
from index.catalogue import Catalogue
from index.sequence.events import Event
from server.engine.contract import RankRequest
from server.engine.torch_backend.engine import TorchEngine
from training.cli.app import app
from training.config import ConfigError
from training.data.dataset import DataSet
from training.data.item_vectors import ItemVectorError, new_item_vectors
from training.errors import EvaluationError
from training.evaluation.evaluate import evaluate
from training.fusion.refit import fuse_bundle
from training.loop.trainer import TrainingError
from training.pipeline import train
from training.prepare.knowledge_basis import KnowledgeError
from training.prepare.renewal import Renewal, RenewalError
from training.prepare.renewed_settings import LENGTH, RATE
from training.run.run_folder import RunError

QUIET = Console(quiet=True)
KNOWN = [f"{colour}-{thing}" for colour in COLOURS[:-1] for thing in THINGS]
NEW = [f"{COLOURS[-1]}-{thing}" for thing in THINGS]
GONE = "white-gloves"
SHORT: dict[str, Any] = {
    "optimiser.epochs": 2, "validation": {"conflict_cases": 0, "cases": 10, "every": 100}, "method": "full",
}  # fmt: skip
SCHEMES: dict[str, dict[str, Any]] = {
    "atomic": {"identifiers": {"scheme": "atomic"}},
    "semantic": {"identifiers": {"scheme": "semantic", "codebooks": (4, 4)}},
    "text": {"identifiers": {"scheme": "text", "spelling": 6}},
}
STILL: dict[str, Any] = {"optimiser.learning_rate": 1e-30, "identifiers.text_part": False}


def on(dataset: DataSet, ids: list[str]) -> DataSet:
    """Return the people who only chose items among `ids`, on a catalogue of these alone."""
    names = dataset.catalogue.item_ids
    rows = {item_id: row for row, item_id in enumerate(ids)}
    users = [
        replace(user, events=tuple(replace(e, item=rows[names[e.item]]) for e in user.events))
        for user in dataset.users
        if all(names[event.item] in rows for event in user.events)
    ]
    items = [dataset.catalogue[names.index(item_id)] for item_id in ids]
    return DataSet(dataset.info, Catalogue(items), users)


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Two data sets: `yesterday` without one colour, `today` with it, in another order and without one item."""
    folder = tmp_path_factory.mktemp("renewal")
    whole = DataSet.load(make_data(folder / "walks", users=100))
    on(whole, KNOWN).save(folder / "yesterday")
    on(whole, [*reversed(NEW), *(item_id for item_id in reversed(KNOWN) if item_id != GONE)]).save(
        folder / "today"
    )
    return folder


@pytest.fixture(scope="module")
def bundles(folder: Path) -> dict[str, Path]:
    """A bundle of yesterday for each scheme."""
    for name, scheme in SCHEMES.items():
        train(folder / "yesterday", folder / name, settings(SHORT, scheme), console=QUIET)
    return {name: folder / name / "bundle" for name in SCHEMES}


def renewed(bundle: Path, data: Path, out: Path, *changes: dict[str, Any], resume: bool = False) -> Bundle:
    renewal = Renewal.open(bundle)
    overrides = {name: value for change in changes for name, value in change.items()}
    config = renewal.settings(None, {"threads": 1} | overrides)
    train(data, out, config, renewal=renewal, resume=resume, console=QUIET)
    return Bundle.open(out / "bundle")


def ranked(bundle: Bundle, *history: str, query: str | None = None) -> list[str]:
    """Return the ids of all living items, the best first."""
    rows = [bundle.index.catalogue.row(item_id) for item_id in history]
    events = [Event(row) for row in rows if row is not None]
    prompt = bundle.encoder.prompt(events, query).ids
    engine, items = TorchEngine.open(bundle), len(bundle.index.catalogue)
    found = engine.rank([RankRequest(prompt, items, items)])[0].items
    return [bundle.index.catalogue[row].item_id for row in found]


@pytest.mark.parametrize("scheme", SCHEMES)
def test_what_the_bundle_knows_stays_and_new_items_are_named(
    scheme: str, folder: Path, bundles: dict[str, Path], tmp_path: Path
) -> None:
    before = Bundle.open(bundles[scheme])
    after = renewed(bundles[scheme], folder / "today", tmp_path / "run", STILL)
    assert after.index.catalogue.item_ids[: len(KNOWN)] == KNOWN
    assert sorted(after.index.catalogue.item_ids[len(KNOWN) :]) == sorted(NEW)
    for row in range(len(KNOWN)):
        assert after.encoder.identifier(row) == before.encoder.identifier(row)
    names = {tuple(after.encoder.identifier(row)) for row in range(len(after.index.catalogue))}
    assert len(names) == len(after.index.catalogue)
    assert [after.index.catalogue[row].item_id for row in after.index.removed] == [GONE]
    assert after.info.training["renewed_from"] == before.info.bundle_id
    old, new = (load_file(bundle.path / "model.safetensors") for bundle in (before, after))
    assert old.keys() == new.keys()
    for name, weight in old.items():
        assert torch.equal(weight, new[name][: len(weight)]), name  # a table may have grown
    for history, query in (((), None), (("red-hat", "red-scarf"), None), (("blue-hat",), "blue scarf")):
        ours = ranked(after, *history, query=query)
        assert set(NEW) < set(ours)  # reachable
        assert GONE not in ours
        theirs = [item_id for item_id in ranked(before, *history, query=query) if item_id != GONE]
        assert [item_id for item_id in ours if item_id not in NEW] == theirs
    assert after.index.pool is not None
    assert not after.index.pool.fresh.any()


@pytest.mark.parametrize("scheme", ["semantic", "text"])
def test_new_items_get_the_names_of_an_update(
    scheme: str, folder: Path, bundles: dict[str, Path], tmp_path: Path
) -> None:
    after = renewed(bundles[scheme], folder / "today", tmp_path / "run", STILL)
    shutil.copytree(bundles[scheme], tmp_path / "updated")
    opened = Bundle.open(tmp_path / "updated")
    today = DataSet.load(folder / "today").catalogue
    items = [item for item in today if item.item_id in NEW]
    update_index(opened, items, [], new_item_vectors(opened.info, items))
    assert np.array_equal(opened.refreshed().index.trie.codes(), after.index.trie.codes())


def test_an_item_that_joined_an_atomic_bundle_gets_a_token_of_its_own(
    folder: Path, bundles: dict[str, Path], tmp_path: Path
) -> None:
    shutil.copytree(bundles["atomic"], tmp_path / "updated")
    opened = Bundle.open(tmp_path / "updated")
    today = DataSet.load(folder / "today").catalogue
    items = [item for item in today if item.item_id in NEW[:2]]
    update_index(opened, items, ["red-hat"], new_item_vectors(opened.info, items))
    shared = opened.refreshed().index.trie.codes()[:, 0]
    assert len(set(shared.tolist())) == len(KNOWN)
    after = renewed(tmp_path / "updated", folder / "today", tmp_path / "run", STILL)
    codes = after.index.trie.codes()[:, 0]
    assert codes.tolist() == list(range(len(KNOWN) + len(NEW)))
    assert after.vocabulary.size == opened.vocabulary.size + len(NEW)
    assert {after.index.catalogue[row].item_id for row in after.index.removed} == {GONE, "red-hat"}


def test_the_row_of_a_new_item_is_like_those_of_similar_ones(
    folder: Path, bundles: dict[str, Path], tmp_path: Path
) -> None:
    after = renewed(bundles["atomic"], folder / "today", tmp_path / "run", STILL)
    first, last = after.vocabulary.span(0)
    rows = load_file(after.path / "model.safetensors")["gpt_neox.embed_in.weight"][first:last]
    items = after.index.catalogue
    hat = items.row(f"{COLOURS[-1]}-hat")
    near = torch.nn.functional.cosine_similarity(rows[: len(KNOWN)], rows[hat : hat + 1])
    alike = np.array(["hat" in item_id for item_id in KNOWN])
    assert near[alike].mean() > near[~alike].mean() + 0.1


def test_the_text_part_is_put_into_the_rows_and_taken_out_again(
    folder: Path, bundles: dict[str, Path], tmp_path: Path
) -> None:
    with_part = {"optimiser.learning_rate": 1e-30, "identifiers.text_part": True}
    after = renewed(bundles["atomic"], folder / "today", tmp_path / "run", with_part)
    old, new = (load_file(path / "model.safetensors") for path in (bundles["atomic"], after.path))
    assert old.keys() == new.keys()
    for name, weight in old.items():
        torch.testing.assert_close(new[name][: len(weight)], weight)
    trained = renewed(
        bundles["atomic"], folder / "today", tmp_path / "trained", {"optimiser.learning_rate": 1e-2}
    )
    moved = load_file(trained.path / "model.safetensors")
    assert not torch.allclose(moved["gpt_neox.embed_in.weight"], new["gpt_neox.embed_in.weight"])


def test_updates_leave_the_inputs_of_old_histories_alone(
    folder: Path, bundles: dict[str, Path], tmp_path: Path
) -> None:
    basis = {
        "method": "gems", "optimiser.learning_rate": 1e-2, "knowledge.source": "histories", "knowledge.energy": 0.99,
        "knowledge.histories": folder / "yesterday", "knowledge.tokens": 500, "optimiser.epochs": 4,
    }  # fmt: skip
    renewed(bundles["atomic"], folder / "today", tmp_path / "run", basis)
    (file,) = (tmp_path / "run" / "prepared").glob("knowledge-histories-*.safetensors")
    knowledge = KnowledgeBasis.load(file)
    assert 400 < knowledge.tokens < 550  # the first token of each history does not count
    old, new = (
        load_file(path / "model.safetensors") for path in (bundles["atomic"], tmp_path / "run" / "bundle")
    )
    for weight in knowledge.site_of:
        change = new[weight] - old[weight]
        known = knowledge.directions(weight, 0.99, change.shape[1] // 2)
        assert change.norm() > 1e-3, weight
        assert (change @ known).norm() < 1e-4 * change.norm()


def stopped(bundle: Path, data: Path, out: Path, changes: dict[str, Any]) -> None:
    """Start a renewal, and end it by a signal after a few steps."""

    def stop() -> None:
        metrics = out / "metrics.jsonl"
        while not (metrics.exists() and len(metrics.read_text().splitlines()) > 4):
            time.sleep(1e-3)
        os.kill(os.getpid(), signal.SIGTERM)

    thread = threading.Thread(target=stop)
    thread.start()
    with pytest.raises(TrainingError, match="--resume goes on"):
        renewed(bundle, data, out, changes)
    thread.join()


def test_a_resumed_renewal_ends_with_the_same_weights_and_keeps_its_bundle(
    folder: Path, bundles: dict[str, Path], tmp_path: Path
) -> None:
    changes = {"optimiser.learning_rate": 1e-2, "optimiser.epochs": 20}
    whole = renewed(bundles["atomic"], folder / "today", tmp_path / "whole", changes)
    stopped(bundles["atomic"], folder / "today", tmp_path / "run", changes)
    shutil.copytree(bundles["atomic"], tmp_path / "other")
    opened = Bundle.open(tmp_path / "other")
    update_index(opened, [], ["red-hat"], new_item_vectors(opened.info, []))
    with pytest.raises(RunError, match="names another one, or its items have changed"):
        renewed(tmp_path / "other", folder / "today", tmp_path / "run", changes, resume=True)
    config = Renewal.open(bundles["atomic"]).settings(None, {"threads": 1} | changes)
    with pytest.raises(RunError, match="resume it with --from"):
        train(folder / "today", tmp_path / "run", config, resume=True, console=QUIET)
    after = renewed(bundles["atomic"], folder / "today", tmp_path / "run", changes, resume=True)
    expected, found = (load_file(bundle.path / "model.safetensors") for bundle in (whole, after))
    assert all(torch.equal(expected[name], found[name]) for name in expected)
    with pytest.raises(RunError, match="without --from"):
        renewed(bundles["atomic"], folder / "yesterday", folder / "atomic", resume=True)


def test_settings_are_those_of_the_bundle_with_a_low_rate(bundles: dict[str, Path]) -> None:
    renewal = Renewal.open(bundles["semantic"])
    found = renewal.settings(None, {})
    told = settings(SHORT, SCHEMES["semantic"])
    assert found.backbone == told.backbone
    assert found.identifiers == told.identifiers
    assert found.sequence == told.sequence
    assert found.optimiser.learning_rate == pytest.approx(RATE * told.optimiser.learning_rate)
    assert found.optimiser.epochs == pytest.approx(LENGTH * told.optimiser.epochs)
    given = renewal.settings(None, {"optimiser.learning_rate": 0.5, "optimiser": {"epochs": 3}})
    assert (given.optimiser.learning_rate, given.optimiser.epochs) == (0.5, 3)


@pytest.mark.parametrize(
    ("wrong", "said"),
    [
        ({"identifiers.scheme": "semantic"}, "identifiers.scheme is semantic, and atomic in the bundle"),
        ({"backbone.hidden": 64}, "backbone.hidden is 64, and 32 in the bundle"),
        ({"backbone.text_vocabulary": 500}, "backbone.text_vocabulary is 500, and 400 in the bundle"),
        ({"sequence.max_events": 9}, "sequence.max_events is 9, and 8 in the bundle"),
    ],
)
def test_settings_that_contradict_the_bundle_are_refused(
    wrong: dict[str, Any], said: str, folder: Path, bundles: dict[str, Path], tmp_path: Path
) -> None:
    with pytest.raises(ConfigError, match=said):
        renewed(bundles["atomic"], folder / "today", tmp_path / "run", wrong)
    assert not (tmp_path / "run").exists()


def test_a_bundle_that_does_not_fit_is_refused_and_nothing_is_written(
    folder: Path, bundles: dict[str, Path], tiny_bundle: Path, tmp_path: Path
) -> None:
    out = tmp_path / "run"
    with pytest.raises(RenewalError, match="none of the 29 items"):
        renewed(tiny_bundle, folder / "today", out)
    with pytest.raises(ItemVectorError, match="come from texts"):
        renewed(bundles["atomic"], folder / "today", out, {"identifiers.vectors": tmp_path / "v.parquet"})
    with pytest.raises(KnowledgeError, match="--from BUNDLE"):
        train(folder / "today", out, settings({"knowledge.source": "histories"}), console=QUIET)
    result = CliRunner().invoke(
        app, ["train", "--from", str(folder / "today"), "--data", str(folder / "today"), "--out", str(out)]
    )
    assert result.exit_code != 0
    assert "bundle" in str(result.exception)
    assert not out.exists()


def test_the_command_goes_on_from_the_bundle_of_a_run(
    folder: Path, bundles: dict[str, Path], tmp_path: Path
) -> None:
    out = tmp_path / "run"
    on(DataSet.load(folder / "walks"), [item_id for item_id in KNOWN if item_id != GONE]).save(
        tmp_path / "without"
    )
    paths = ["--from", bundles["atomic"].parent, "--data", folder / "today", "--out", out]
    result = CliRunner().invoke(app, ["train", *map(str, paths), "--threads", "1"])
    assert result.exit_code == 0, result.exception
    assert "25 items keep their" in " ".join(result.stdout.split())
    assert Bundle.open(out / "bundle").info.training["method"] == "full"
    assert evaluate(out / "bundle", folder / "today", threads=1)["cases"]["search"] > 50
    version, _ = fuse_bundle(
        out / "bundle", folder / "today", threads=1, console=QUIET
    )  # a log in another order
    assert version == "v2"
    with pytest.raises(EvaluationError, match="holds 24 of the 29 items"):
        fuse_bundle(out / "bundle", tmp_path / "without", threads=1, console=QUIET)


def test_an_encoder_decoder_goes_on_and_keeps_what_both_its_stacks_knew(folder: Path, tmp_path: Path) -> None:
    tiger = {"backbone": {"name": "t5-tiger", "hidden": 32, "heads": 2, "layers": 1}, "sequence.targets": 2}
    train(folder / "yesterday", tmp_path / "t5", settings(SHORT, SCHEMES["atomic"], tiger), console=QUIET)
    basis = {
        "method": "gems", "optimiser.epochs": 2, "optimiser.relative": False, "optimiser.learning_rate": 1e-3,
        "knowledge.source": "histories", "knowledge.tokens": 500,
    }  # fmt: skip
    after = renewed(tmp_path / "t5" / "bundle", folder / "today", tmp_path / "run", basis)
    (file,) = (tmp_path / "run" / "prepared").glob("knowledge-histories-*.safetensors")
    knowledge = KnowledgeBasis.load(file)
    old = load_file(tmp_path / "t5" / "bundle" / "model.safetensors")
    new = load_file(after.path / "model.safetensors")
    for weight in (
        "encoder.block.0.layer.0.SelfAttention.q.weight",
        "decoder.block.0.layer.1.EncDecAttention.k.weight",
    ):
        change = new[weight] - old[weight]
        known = knowledge.directions(weight, 0.9, change.shape[1] // 2)
        assert change.norm() > 1e-4
        assert (change @ known).norm() < 1e-4 * change.norm()
