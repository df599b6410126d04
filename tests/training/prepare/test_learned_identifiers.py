"""Identifiers whose vectors or codes are learned from people: an encoder tuned on both tasks, and LETTER."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from rich.console import Console
from support.walks import make_data, settings
from typer.testing import CliRunner

from index.bundle.bundle import Bundle
from index.catalogue import Catalogue, Item
from index.sequence.events import Event, Task
from training.baselines.dense import Pairs
from training.baselines.settings import BaselineError
from training.cli.app import app
from training.data.dataset import DataSet
from training.data.histories import UserHistory
from training.data.item_vectors import ItemVectorError
from training.data.splits import Split, leave_one_out
from training.data.vectors import read_vectors
from training.pipeline import train
from training.prepare.behaviour import behaviour_source
from training.prepare.tuned_vectors import affine_map

QUIET = Console(quiet=True)
SHORT: dict[str, Any] = {"optimiser.epochs": 1, "validation": {"conflict_cases": 0, "cases": 10}}
LETTER = {"identifiers": {"quantiser": "letter", "codebooks": [8, 8], "fused_hidden": 16, "fused_epochs": 3}}
TUNED = {"identifiers": {"embeddings": "bi-encoder", "codebooks": [8, 8], "tuned_steps": 6}}


@pytest.fixture(scope="module")
def data(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Walks through thirty items, and one item that nobody chose."""
    walks = DataSet.load(make_data(tmp_path_factory.mktemp("data") / "walks", users=60))
    more = Catalogue([*walks.catalogue, Item("unchosen", "red hat unchosen")])
    return make_copy(DataSet(walks.info, more, walks.users), tmp_path_factory.mktemp("more"))


def make_copy(dataset: DataSet, folder: Path) -> Path:
    dataset.save(folder / "data")
    return folder / "data"


def test_a_run_with_letter_learns_behaviour_first_and_keeps_it(data: Path, tmp_path: Path) -> None:
    config = settings(SHORT, LETTER)
    bundle = Bundle.open(train(data, tmp_path / "run", config, console=QUIET) or Path())
    (folder,) = (tmp_path / "run").glob("behaviour-*")
    assert (folder / "sasrec" / "evaluation.json").exists()
    assert (bundle.info.scheme, bundle.info.item_embeddings) == ("semantic", "text")
    dataset = DataSet.load(data)
    learned = behaviour_source(config, data, dataset, leave_one_out(dataset), tmp_path / "run" / "prepared")(
        QUIET
    )
    exported = read_vectors(folder / "sasrec" / "item_vectors.parquet", dataset.catalogue.item_ids)
    assert np.isnan(learned[-1]).all()  # nobody chose it
    assert np.array_equal(learned[:-1], exported[:-1])


def test_later_items_of_a_tuned_encoder_are_named_like_their_twins(data: Path, tmp_path: Path) -> None:
    bundle = Bundle.open(train(data, tmp_path / "run", settings(SHORT, TUNED), console=QUIET) or Path())
    assert (bundle.info.item_embeddings, bundle.info.item_encoder) == ("bi-encoder", "minilm")
    (tmp_path / "new.jsonl").write_text(json.dumps({"item_id": "new", "title": "red hat unchosen"}) + "\n")
    done = CliRunner().invoke(
        app, ["index", "update", str(bundle.path), "--items", str(tmp_path / "new.jsonl")]
    )
    assert "1 items added" in done.output, done.output
    codes = bundle.refreshed().index.trie.codes()
    assert np.array_equal(codes[-1, :-1], codes[-2, :-1])
    (folder,) = (tmp_path / "run").glob("tuned-*")
    tuned = read_vectors(folder / "dense" / "item_vectors.parquet", bundle.index.catalogue.item_ids)
    assert np.array_equal(np.load(tmp_path / "run" / "prepared" / "item_vectors.npy"), tuned)


def test_the_map_from_untuned_to_tuned_vectors_is_the_linear_one() -> None:
    rng = np.random.default_rng(0)
    x, weight, bias = rng.normal(size=(200, 6)), rng.normal(size=(6, 3)), rng.normal(size=3)
    found = affine_map(x.astype(np.float32), (x @ weight + bias).astype(np.float32))
    assert np.allclose(found.weight, weight, rtol=0, atol=1e-2)
    assert np.allclose(found.bias, bias, rtol=0, atol=1e-2)


def split_of(*histories: list[Event]) -> Split:
    return Split(list(histories), [], [])


def test_pairs_of_both_tasks_and_no_negative_is_the_item_itself() -> None:
    texts = ["red hat", "red coat", "red hat"]  # two items with one text
    walk = [Event(0), Event(1, Task.SEARCH, "coat"), Event(1), Event(2)]
    pairs = Pairs.of(split_of(walk), texts, "both")
    named = [(pairs.queries[q], int(i)) for q, i in zip(pairs.query, pairs.item, strict=True)]
    assert named == [("coat", 1), ("red hat", 1), ("red coat", 2)]  # an item does not lead to itself
    assert pairs.searches == 1
    assert pairs.chosen[pairs.queries.index("red hat")] == {0, 1}
    assert Pairs.of(split_of(walk), texts).searches == len(Pairs.of(split_of(walk), texts).query) == 1
    with pytest.raises(BaselineError, match="no training event is a search"):
        Pairs.of(split_of([Event(0), Event(1)]), texts, "both")


def test_a_batch_holds_both_tasks_in_equal_parts_as_far_as_there_are_pairs() -> None:
    rng = np.random.default_rng(0)
    for searches, others, count, expected in (
        (50, 90, 20, 10),
        (3, 90, 20, 3),
        (50, 2, 20, 18),
        (9, 0, 20, 9),
    ):
        total = searches + others
        pairs = Pairs(["q"], np.zeros(total, int), np.arange(total), [set()], searches)
        rows = pairs.draw(count, rng)
        assert len(rows) == len(set(rows.tolist())) == min(count, total)
        assert (rows < searches).sum() == expected


def test_what_cannot_be_learned_is_said_before_anything_is_written(data: Path, tmp_path: Path) -> None:
    dataset = DataSet.load(data)

    def refused(folder: Path, *changes: dict[str, Any]) -> str:
        with pytest.raises(ItemVectorError) as caught:
            train(folder, tmp_path / "run", settings(SHORT, *changes), console=QUIET)
        assert not (tmp_path / "run").exists()
        return str(caught.value)

    def without_searches(user: UserHistory) -> UserHistory:
        return UserHistory(
            user.user_id, tuple(Event(e.item) for e in user.events), user.simulated_queries, user.timestamps
        )

    users = [without_searches(user) for user in dataset.users]
    silent = make_copy(DataSet(dataset.info, dataset.catalogue, users), tmp_path / "silent")
    assert "embeddings bi-encoder: no training event is a search" in refused(silent, TUNED)
    np.save(tmp_path / "v.npy", np.ones((31, 4), np.float32))
    assert "leave out --identifiers.vectors" in refused(
        data, TUNED, {"identifiers.vectors": tmp_path / "v.npy"}
    )
    assert "leave out --identifiers.encoder" in refused(data, TUNED, {"identifiers.encoder": "other"})
    short = [
        UserHistory(user.user_id, user.events[:3], user.simulated_queries[:3], user.timestamps[:3])
        for user in dataset.users
    ]
    few = make_copy(DataSet(dataset.info, dataset.catalogue, short), tmp_path / "few")
    assert "--identifiers.quantiser letter: nobody has two training events" in refused(few, LETTER)
