"""Answers of a server whose items have an identifier for each task, compared with scores of every item."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from itertools import pairwise
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from starlette.testclient import TestClient
from support.bundles import item_vectors, make_bundle
from support.engines import assert_same_ranking, hosted
from support.references import identifier_scores

from index.bundle.bundle import Bundle
from index.bundle.update import update_index
from index.catalogue import Item
from index.sequence.events import Event, Task
from server.app import create_app
from server.engine.contract import EngineError, RankRequest
from server.engine.options import EngineOptions
from server.engine.process.engine_process import EngineProcess
from server.engine.torch_backend.engine import TorchEngine
from server.settings import Settings

HISTORY = [{"item_id": "item-3"}, {"item_id": "item-11", "behaviour": "search", "query": "lost river"}]
EVENTS = [Event(3), Event(11, Task.SEARCH, "lost river")]
QUERY = "golden garden"
REMOVED = (7, 20)


@pytest.fixture(scope="module")
def both(tmp_path_factory: pytest.TempPathFactory) -> Bundle:
    """A bundle with a pool, whose items 7 and 20 are removed."""
    path = make_bundle(tmp_path_factory.mktemp("both") / "bundle", of_each_task=True, pool=True)
    update_index(Bundle.open(path), [], [f"item-{row}" for row in REMOVED], item_vectors)
    return Bundle.open(path)


@pytest.fixture(scope="module")
def both_engine(both: Bundle) -> TorchEngine:
    return TorchEngine.open(both)


@pytest.fixture(scope="module")
def both_client(both: Bundle, both_engine: TorchEngine) -> Iterator[TestClient]:
    with TestClient(create_app(both, hosted(both_engine), Settings())) as started:
        yield started


def prompt(bundle: Bundle, task: Task) -> list[int]:
    return bundle.encoder.prompt(EVENTS, QUERY if task is Task.SEARCH else None).ids


def every_score(bundle: Bundle, task: Task) -> np.ndarray:
    """log p of each item's identifier of the task, by a forward pass for each item: float64 [60]."""
    codes = bundle.index.named(task).trie.codes()
    ids = prompt(bundle, task)
    sequences = np.hstack([np.tile(ids, (len(codes), 1)), bundle.vocabulary.tokens(codes)])
    with torch.inference_mode():
        logits = bundle.load_model()(torch.from_numpy(sequences)).logits.double()
    return identifier_scores(logits[:, len(ids) - 1 : -1], codes, bundle.vocabulary, "level")


def ask(client: TestClient, task: Task, **body: Any) -> list[dict[str, Any]]:
    path, query = ("/search", {"query": QUERY}) if task is Task.SEARCH else ("/recommend", {})
    settings = {"history": HISTORY, "limit": 60, "beam_width": 60, "ranking": "beam"}
    answer = client.post(path, json=settings | query | body)
    assert answer.status_code == 200, answer.text
    found: list[dict[str, Any]] = answer.json()["items"]
    return found


def check(found: Sequence[dict[str, Any]], scores: np.ndarray, rows: Sequence[int]) -> None:
    """Compare an answer with the scores of the only rows that it may hold, all of them, each once."""
    ids = [item["item_id"] for item in found]
    assert sorted(ids) == sorted(f"item-{row}" for row in rows)
    expected = [scores[int(item_id.removeprefix("item-"))] for item_id in ids]
    assert np.allclose([item["score"] for item in found], expected, rtol=0, atol=1e-3)
    assert all(one >= other - 1e-3 for one, other in pairwise(expected))


@pytest.mark.parametrize("task", Task)
def test_a_wide_beam_is_the_order_of_all_items_whatever_is_asked(
    both: Bundle, both_client: TestClient, task: Task
) -> None:
    scores = every_score(both, task)
    living = [row for row in range(60) if row not in REMOVED]
    check(ask(both_client, task, exclude_history=False), scores, living)
    unseen = [row for row in living if row not in (3, 11)]
    check(ask(both_client, task, exclude_history=True), scores, unseen)
    left_out = ["item-5", "item-7", "item-30", "item-31", "unknown"]
    kept = [row for row in living if row not in (5, 30, 31)]
    check(ask(both_client, task, exclude=left_out, exclude_history=False), scores, kept)
    recent = [row for row in living if row >= 30 and row % 5 in (1, 2)]
    asked = {"year": {"gte": 1980}, "categories": ["Comedy", "Science Fiction"]}
    check(ask(both_client, task, filter=asked, exclude_history=False), scores, recent)
    few = ["item-2", "item-20", "item-44", "item-45"]
    check(ask(both_client, task, candidates=few, exclude_history=False), scores, [2, 44, 45])
    both_asked = {"filter": asked, "candidates": [f"item-{row}" for row in range(40)], "exclude": ["item-31"]}
    check(
        ask(both_client, task, exclude_history=False, **both_asked),
        scores,
        [row for row in recent if row < 40 and row != 31],
    )


@pytest.mark.parametrize("task", Task)
def test_a_pool_is_scored_under_the_identifiers_of_the_task(
    both: Bundle, both_engine: TorchEngine, both_client: TestClient, task: Task
) -> None:
    scores, rows = every_score(both, task), (4, 7, 11, 50)
    everything = both_engine.everything_for(task)
    asked = RankRequest(prompt(both, task), 5, 5, everything, pool=rows)
    ranking = both_engine.rank([asked])[0]
    assert np.allclose(ranking.pool_scores, scores[list(rows)], rtol=0, atol=1e-3)
    found = [item["item_id"] for item in ask(both_client, task, ranking="pool", limit=50)]
    assert len(found) == len(set(found)) > 20


def test_the_two_tasks_differ_in_their_tries_and_an_explanation_scores_by_the_right_one(
    both: Bundle, both_client: TestClient
) -> None:
    assert not np.allclose(*(every_score(both, task) for task in Task))
    for task in Task:
        path, query = ("/search", {"query": QUERY}) if task is Task.SEARCH else ("/recommend", {})
        body = {"history": HISTORY, "limit": 3, "explain": True, "ranking": "beam"} | query
        answer = both_client.post(path, json=body).json()
        first = answer["items"][0]
        row = int(first["item_id"].removeprefix("item-"))
        names = both.index.named(task)
        first_code = both.vocabulary.first_code
        left = both.encoder.prompt(EVENTS[1:], QUERY if task is Task.SEARCH else None).ids
        sequence = [*left, *(names.trie.codes()[row] + first_code).tolist()]
        with torch.inference_mode():
            logits = both.load_model()(torch.tensor([sequence])).logits.double()
        codes = names.trie.codes()[[row]]
        without = identifier_scores(logits[:, len(left) - 1 : -1], codes, both.vocabulary, "level")[0]
        effects = {each["position"]: each["effect"] for each in answer["explanation"]["history"]}
        assert effects[0] == pytest.approx(first["score"] - without, abs=1e-3)


def test_an_engine_in_a_process_ranks_by_the_trie_of_the_task_also_after_an_update(tmp_path: Path) -> None:
    path = make_bundle(tmp_path / "bundle", of_each_task=True)
    bundle = Bundle.open(path)
    process = EngineProcess(bundle, options=EngineOptions(threads=1))
    process.start([RankRequest(prompt(bundle, Task.RECOMMENDATION), 5, 10)])
    try:
        update_index(bundle, [Item("new", "Silent Ocean")], ["item-5"], item_vectors)
        new = bundle.refreshed()
        stranger = RankRequest(prompt(new, Task.SEARCH), 5, 10, new.index.named(Task.SEARCH).everything)
        with pytest.raises(EngineError, match="has not opened"):
            process.rank([stranger])
        process.prepare(new.index)
        for version in (bundle, new):
            engine = TorchEngine.open(version)
            for task in Task:
                allowed = engine.everything_for(task).without([2, 3])
                request = RankRequest(prompt(version, task), 61, 61, allowed, pool=(9, 1))
                named = version.index.named(task).everything.without([2, 3])
                sent = RankRequest(prompt(version, task), 61, 61, named, pool=(9, 1))
                assert_same_ranking(process.rank([sent])[0], engine.rank([request])[0])
        for task in Task:
            assert process.everything_for(task).trie is new.index.named(task).trie
    finally:
        process.close()
