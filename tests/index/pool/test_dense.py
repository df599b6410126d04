"""Dense scores: against their formula, for every item and for hidden ones, and what is stored of them."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest
from support.pools import make_dense

from index.pool import dense as module
from index.pool.dense import DenseIndex

ITEMS, VECTORS, STATES = 40, 6, 5
RNG = np.random.default_rng(3)
TEXTS = RNG.normal(size=(ITEMS, VECTORS)).astype(np.float32)
STATE = RNG.normal(size=STATES).tolist()


def expected(index: DenseIndex, rows: np.ndarray, sample: np.ndarray) -> np.ndarray:
    """Return all scores by the formula. rows, sample: of all items, and of those that they are compared with."""
    products = rows.astype(float) @ (index.head.state @ np.array(STATE))
    return products - np.log(np.mean(np.exp(sample.astype(float) @ (index.head.state @ np.array(STATE)))))


def test_scores_follow_the_formula() -> None:
    index = make_dense(TEXTS, STATES)
    rows = (TEXTS - TEXTS.mean(0)) @ index.head.item.T
    every = np.arange(ITEMS)
    np.testing.assert_allclose(index.scores(STATE, every), expected(index, rows, rows), atol=0.02)
    average = np.log(np.mean(np.exp(index.scores(STATE, every))))
    assert average == pytest.approx(0, abs=1e-4)  # the average item has the score 0


def test_a_sample_of_a_large_catalogue_is_enough(monkeypatch: pytest.MonkeyPatch) -> None:
    texts = RNG.normal(size=(6000, VECTORS)).astype(np.float32) / 3
    index = make_dense(texts, STATES)
    some = np.arange(20)
    near = index.scores(STATE, some)
    monkeypatch.setattr(module, "SAMPLE", 6000)
    exact = make_dense(texts, STATES).scores(STATE, some)
    np.testing.assert_allclose(near, exact, atol=0.2)
    assert np.ptp(near - exact) < 1e-5  # the order is not touched


def test_hidden_items_are_scored_by_the_fit_that_did_not_know_them() -> None:
    index = make_dense(TEXTS, STATES)
    every = np.arange(ITEMS)
    items = np.zeros(ITEMS, bool)
    items[[1, 7, 9]] = True
    hiding = index.hiding(items, half=1)
    found = hiding.scores(STATE, every)
    np.testing.assert_array_equal(found[~items], index.scores(STATE, every)[~items])
    wanted = expected(index, index.held_out, index.held_out[1::2])
    np.testing.assert_allclose(found[items], wanted[items], atol=1e-3)


@pytest.mark.parametrize("limit", [1, 3, 100])
def test_the_best_are_those_with_the_highest_scores_among_the_allowed(limit: int) -> None:
    index = make_dense(TEXTS, STATES)
    some = np.arange(5, ITEMS)
    allowed = RNG.random(len(some)) < 0.5
    scores = np.where(allowed, index.scores(STATE, some), -np.inf)
    order = np.argsort(-scores)[: min(limit, int(allowed.sum()))]
    assert index.best(STATE, index.rows_of(some), allowed, limit).tolist() == order.tolist()
    assert index.best(STATE, index.rows_of(some), np.zeros(len(some), bool), limit).tolist() == []


def test_later_and_changed_items_get_the_rows_of_their_vectors() -> None:
    index = make_dense(TEXTS, STATES)
    new = RNG.normal(size=(3, VECTORS)).astype(np.float32)
    after = index.updated([4], 2, new)
    assert after.trained == ITEMS
    np.testing.assert_array_equal(after.rows[[4, ITEMS, ITEMS + 1]], index.head.rows(new))
    np.testing.assert_array_equal(np.delete(after.rows[:ITEMS], 4, 0), np.delete(index.rows, 4, 0))
    assert len(after.held_out) == ITEMS + 2


def test_what_is_saved_is_opened(tmp_path: Path) -> None:
    index = make_dense(TEXTS, STATES)
    index.save(tmp_path / "dense")
    opened = DenseIndex.open(tmp_path / "dense", ITEMS, ITEMS)
    np.testing.assert_array_equal(
        opened.scores(STATE, np.arange(ITEMS)), index.scores(STATE, np.arange(ITEMS))
    )
    np.testing.assert_array_equal(opened.held_out, index.held_out)


def test_damage_is_refused_by_the_name_of_the_file(tmp_path: Path) -> None:
    index = make_dense(TEXTS, STATES)
    index.save(tmp_path / "dense")
    with pytest.raises(ValueError, match=r"rows\.npy must hold"):
        DenseIndex.open(tmp_path / "dense", ITEMS + 1, ITEMS)
    np.save(tmp_path / "dense" / "item.npy", np.full(8 * VECTORS, np.nan, np.float32))
    with pytest.raises(ValueError, match=r"item\.npy is damaged"):
        DenseIndex.open(tmp_path / "dense", ITEMS, ITEMS)
    for bad in ({"width": -1}, {"width": 10**9}, {}, {"width": "8"}):
        (tmp_path / "dense" / "dense.json").write_text(json.dumps(bad), "utf-8")
        with pytest.raises(ValueError, match=r"dense\.json"):
            DenseIndex.open(tmp_path / "dense", ITEMS, ITEMS)
