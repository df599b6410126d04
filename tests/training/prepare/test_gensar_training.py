"""Trainings whose items have an identifier for each task, from data to answers, updates and a renewal."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from rich.console import Console
from support.engines import assert_same_ranking
from support.walks import make_data, settings
from typer.testing import CliRunner

from index.bundle.bundle import Bundle
from index.catalogue import Catalogue, Item
from index.sequence.events import Event, Task
from server.engine.contract import RankRequest
from server.engine.torch_backend.engine import TorchEngine
from training.cli.app import app
from training.config import ConfigError, TrainConfig
from training.data.dataset import DataSet
from training.data.histories import UserHistory
from training.data.item_vectors import ItemVectorError
from training.data.splits import leave_one_out
from training.evaluation.evaluate import evaluate
from training.evaluation.ranking import rank_cases
from training.pipeline import train
from training.plan.plan import codebook_sizes
from training.prepare.preparation import open_prepared
from training.prepare.renewal import Renewal

QUIET = Console(quiet=True)
SHORT: dict[str, Any] = {
    "identifiers": {"scheme": "gensar", "codebooks": [4, 4], "fused_hidden": 16, "fused_epochs": 2},
    "optimiser.epochs": 2,
    "validation": {"conflict_cases": 4, "cases": 10, "every": 2, "stop_on": "ndcg@10"},
}
BACKBONES = {
    "decoder-only": {},
    "t5": {
        "method": "full",
        "backbone": {"name": "t5-tiger", "hidden": 32, "heads": 2, "layers": 1, "text_vocabulary": 400},
    },
}


@pytest.fixture(scope="module")
def data(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Walks through thirty items, and one item that nobody chose."""
    folder = tmp_path_factory.mktemp("data")
    walks = DataSet.load(make_data(folder / "walks", users=60))
    more = Catalogue([*walks.catalogue, Item("unchosen", "red hat unchosen")])
    DataSet(walks.info, more, walks.users).save(folder / "data")
    return folder / "data"


def ask(bundle: Bundle, task: Task) -> list[int]:
    """Return the rows that a wide beam finds."""
    engine = TorchEngine.open(bundle)
    prompt = bundle.encoder.prompt([Event(3)], "blue hat" if task is Task.SEARCH else None)
    items = len(bundle.index.catalogue)
    allowed = bundle.index.named(task).everything
    return engine.rank([RankRequest(prompt.ids, items, items, allowed)])[0].items


def check_evaluation(bundle: Bundle, dataset: DataSet) -> None:
    """Compare the rankings of an evaluation with those in the trie of their task."""
    engine, chosen = TorchEngine.open(bundle), leave_one_out(dataset).test[:3]
    for task in Task:
        found = rank_cases(engine, bundle.encoder, chosen, task, beam_width=31, limit=31)
        for case, ranking in zip(chosen, found, strict=True):
            ids = bundle.encoder.prompt(case.history, case.query if task is Task.SEARCH else None).ids
            asked = RankRequest(ids, 31, 31, bundle.index.named(task).everything)
            assert_same_ranking(ranking, engine.rank([asked])[0])


@pytest.mark.parametrize("kind", BACKBONES)
def test_from_data_to_a_bundle_that_answers_both_tasks_and_lives_on(
    kind: str, data: Path, tmp_path: Path
) -> None:
    config = settings(SHORT, BACKBONES[kind])
    bundle = Bundle.open(train(data, tmp_path / "run", config, console=QUIET) or Path())
    assert (bundle.info.scheme, bundle.info.item_embeddings) == ("gensar", "text")
    prepared = open_prepared(tmp_path / "run" / "prepared").identifiers
    assert prepared.search_codes is not None
    for task, codes in ((Task.SEARCH, prepared.search_codes), (Task.RECOMMENDATION, prepared.codes)):
        assert np.array_equal(bundle.index.named(task).trie.codes(), codes)
        assert sorted(ask(bundle, task)) == list(range(31))
    assert bundle.info.codebook_sizes[:-1] == codebook_sizes(config, 31)[:-1] == (4, 8)
    check_evaluation(bundle, DataSet.load(data))
    before = evaluate(bundle.path, data, threads=1, ranking="beam")
    (tmp_path / "new.jsonl").write_text(json.dumps({"item_id": "new", "title": "red hat unchosen"}) + "\n")
    words = ["index", "update", str(bundle.path), "--items", str(tmp_path / "new.jsonl")]
    done = CliRunner().invoke(app, words)
    assert "1 items added" in done.output, done.output
    after = bundle.refreshed()
    for task in Task:
        codes = after.index.named(task).trie.codes()
        assert np.array_equal(codes[-1, :-1], codes[-2, :-1])  # like its twin, which nobody chose either
        assert sorted(ask(after, task)) == list(range(32))
    again = evaluate(bundle.path, data, threads=1, ranking="pool")
    assert all(before["cases"][task.value] == again["cases"][task.value] > 0 for task in Task)
    shown = CliRunner().invoke(app, ["index", "describe", str(bundle.path)])
    assert "Identifiers of a search" in shown.output, shown.output
    if kind == "t5":
        return
    renewal = Renewal.open(bundle.path)
    still = renewal.settings(None, {"optimiser.epochs": 1, "threads": 1})
    newer = train(data, tmp_path / "renewed", still, renewal=renewal, console=QUIET)
    renewed = Bundle.open(newer or Path())
    for task in Task:
        old, new = (each.index.named(task).trie.codes() for each in (after, renewed))
        assert np.array_equal(old, new)
        assert sorted(ask(renewed, task)) == list(range(31))  # `new` is not in the data set


def test_what_cannot_be_learned_is_said_before_anything_is_written(data: Path, tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="two codebooks or more"):
        settings(SHORT, {"identifiers.codebooks": [8]})
    with pytest.raises(ConfigError, match="'alphafuse' is for semantic identifiers"):
        settings(SHORT, {"identifiers.embeddings": "alphafuse"})
    dataset = DataSet.load(data)
    users = [
        UserHistory(user.user_id, user.events[:3], user.simulated_queries[:3], user.timestamps[:3])
        for user in dataset.users
    ]
    DataSet(dataset.info, dataset.catalogue, users).save(tmp_path / "few")
    with pytest.raises(
        ItemVectorError, match=r"--identifiers\.scheme gensar: nobody has two training events"
    ):
        train(tmp_path / "few", tmp_path / "run", settings(SHORT), console=QUIET)
    assert not (tmp_path / "run").exists()


def test_the_recipe_is_of_the_paper_and_of_the_size_of_tiger() -> None:
    config, tiger = (TrainConfig.load(None, {}, name) for name in ("gensar", "tiger"))
    assert config.backbone == tiger.backbone
    assert codebook_sizes(config, 1000)[:-1] == (256, 256, 512, 512)
